"""Measure peak memory and time of converting a synthetic Meta checkpoint of LLaMA-7B; prints one JSON object.

    python tests/bench/convert.py [--layers 32] [--folder DIR]

With 32 layers it needs 27 GB of disk, which it frees again. A separate process writes the checkpoint, because a child's
peak memory starts at that of its parent.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HIDDEN, WIDTH, VOCABULARY = 4096, 11008, 32000


def make(folder: Path, layers: int) -> None:
    """Write consolidated.00.pth, params.json and tokenizer.model of a LLaMA-7B with random fp16 weights."""
    import functools

    import torch

    from recipe.checkpoints import llama, pth_out
    from recipe.checkpoints.source import LazyTensor

    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul(0.02).half()
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
    }

    def weight(shape: tuple[int, ...]) -> torch.Tensor:
        count = torch.Size(shape).numel()
        return noise.repeat(-(-count // len(noise)))[:count].reshape(shape)

    names = llama.meta_names(layers)
    tensors = [
        LazyTensor(names[name], shape, torch.float16, functools.partial(weight, shape))
        for name, shape in llama.expected_shapes(config, folder).items()
    ]
    pth_out.write(folder / "consolidated.00.pth", tensors)
    params = {"dim": HIDDEN, "n_layers": layers, "n_heads": 32, "norm_eps": 1e-5, "vocab_size": -1, "multiple_of": 256}
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tokenizer.model").write_bytes(tokenizer())


def tokenizer() -> bytes:
    """A sentencepiece model with LLaMA's layout: three special pieces, the bytes, invented words."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for piece, kind in (("<unk>", 2), ("<s>", 3), ("</s>", 3)):
        proto.pieces.add(piece=piece, score=0.0, type=kind)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0.0, type=6)
    for index in range(VOCABULARY - len(proto.pieces)):
        proto.pieces.add(piece=chr(0x4E00 + index), score=-float(index), type=1)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


def measure(source: Path, output: Path) -> tuple[int, float, float]:
    """Exit code, seconds and peak memory in GB of one conversion."""
    command = [sys.executable, "-m", "recipe.convert", "--source", str(source), "--output", str(output), "--json"]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.monotonic() - started, usage.ru_maxrss * 1024 / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="layers of the checkpoint (default 32, 13.5 GB)")
    parser.add_argument("--folder", type=Path, help="folder for temporary files (default: the system's)")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        sys.path.insert(0, str(ROOT))
        make(args.make, args.layers)
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        source = Path(name) / "meta"
        source.mkdir()
        subprocess.run(
            [sys.executable, __file__, "--layers", str(args.layers), "--make", str(source)], cwd=ROOT, check=True
        )
        size = sum(file.stat().st_size for file in source.iterdir()) / 1e9
        code, seconds, peak = measure(source, Path(name) / "converted")
    result = {
        "exit_code": code,
        "checkpoint_gb": round(size, 2),
        "seconds": round(seconds, 1),
        "seconds_per_gb": round(seconds / size, 1),
        "peak_memory_gb": round(peak, 2),
        "limit_gb": 2.5,
    }
    print(json.dumps(result))
    return code or int(peak > 2.5)


if __name__ == "__main__":
    sys.exit(main())
