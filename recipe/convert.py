"""Convert raw weights (Meta, Hugging Face, GGUF) to safetensors, a fast tokenizer and a manifest; 2.5 GB of memory."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core import config as configs
from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST, atomic_folder, check_folder
from recipe.core.manifest import completed, hash_inputs, write_manifest
from recipe.core.text import progress, say, show

if TYPE_CHECKING:
    from recipe.checkpoints.source import LazyTensor, Source
    from recipe.checkpoints.tokenizer import Tokenizer

STAGE = "convert"
SPARE_BYTES = 100_000_000  # tokenizer, configs, and what a file system keeps for itself


def run(config: Config) -> dict[str, Any]:
    """Raw weights at `base.source` -> `base.path`; its manifest.

    Everything that can be known without reading the weights (names, shapes, tokenizer, disk) is checked before the
    first byte is written. Raises RecipeError: an incomplete, damaged or unknown checkpoint, a tokenizer of another
    size, too little disk, values that fp16 cannot hold.
    """
    source, output = _paths(config)
    settings = {"dtype": config.base.dtype}
    found = open_source(source)
    tokenizer, shards = check(found, source, config.base.dtype)
    check_folder(output, STAGE)
    if not (output / MANIFEST).is_file():
        check_disk(output, _bytes(shards, config.base.dtype))  # before the minute that hashing 13 GB takes
    inputs = hash_inputs({file.name: file for file in found.files})
    if manifest := completed(output, STAGE, settings, inputs):
        say(f"{output} is there already: its manifest holds")
        return manifest
    check_disk(output, _bytes(shards, config.base.dtype))
    with atomic_folder(output) as partial:
        repairs = write(found, tokenizer, shards, config.base.dtype, partial)
        results = {**describe(found, shards, config.base.dtype), "repairs": repairs}
        return write_manifest(partial, STAGE, settings, inputs, results)


def open_source(path: Path) -> "Source":
    """The checkpoint at `path`, whatever kind it is. Raises RecipeError where it is none that is known."""
    from recipe.checkpoints import gguf, hf, meta

    if path.is_file() and path.suffix == ".gguf":
        return gguf.open_source(path)
    if not path.is_dir():
        raise RecipeError(f"{path} is {'no checkpoint' if path.exists() else 'not there'}: expected {EXPECTED}")
    if any(path.glob(meta.SHARDS)):
        return meta.open_source(path)
    if hf.is_folder(path):
        return hf.open_source(path)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return gguf.open_source(files[0])
    if files:
        raise RecipeError(f"{path} holds {len(files)} .gguf files: name one of them, such as --source {files[0]}")
    raise RecipeError(f"{path} holds no checkpoint: expected {EXPECTED}")


EXPECTED = (
    "a folder with consolidated.*.pth and params.json (Meta), with config.json and .safetensors or .bin "
    "(Hugging Face), or a .gguf file"
)


def check(found: "Source", where: Path, dtype: str) -> "tuple[Tokenizer, list[list[LazyTensor]]]":
    """The tokenizer, and the tensors in the model's order cut into shards; all names, shapes and sizes are right."""
    from recipe.checkpoints import llama, safetensors, source

    expected = llama.expected_shapes(found.config, where)
    source.check_shapes(where, found.tensors, expected)
    tokenizer = found.tokenizer(found.config["vocab_size"])
    return tokenizer, safetensors.plan([found.tensors[name] for name in expected], safetensors.DTYPES[dtype])


def check_disk(output: Path, size: int) -> None:
    """Raises RecipeError where `size` bytes and some more do not fit beside `output`."""
    place = next(folder for folder in output.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < size + SPARE_BYTES:
        raise RecipeError(
            f"{place} has {free / 1e9:.1f} GB free, the converted weights need {(size + SPARE_BYTES) / 1e9:.1f} GB: "
            "free some or name another place with --output"
        )


def write(
    found: "Source", tokenizer: "Tokenizer", shards: "list[list[LazyTensor]]", dtype: str, folder: Path
) -> list[str]:
    """Weights, config, generation config and tokenizer into `folder`; what was repaired, one sentence each."""
    from recipe.checkpoints import hf_config, safetensors

    torch_dtype = safetensors.DTYPES[dtype]
    with progress(total=_bytes(shards, dtype), unit="B", unit_scale=True, desc="convert") as bar:
        safetensors.write(folder, shards, torch_dtype, bar.update)
    tokenizer.save(folder)
    changed = hf_config.write(folder, found.config, tokenizer.fast, torch_dtype)
    repairs = [*found.repairs, *tokenizer.repairs, *changed]
    for repair in repairs:
        say(f"repaired: {repair}")
    return repairs


def describe(found: "Source", shards: "list[list[LazyTensor]]", dtype: str) -> dict[str, Any]:
    """What the plan and the manifest say of a conversion."""
    tensors = [tensor for shard in shards for tensor in shard]
    return {
        "kind": found.kind,
        "tensors": len(tensors),
        "parameters": sum(tensor.numel for tensor in tensors),
        "bytes": _bytes(shards, dtype),
        "shards": len(shards),
    }


def _bytes(shards: "list[list[LazyTensor]]", dtype: str) -> int:
    from recipe.checkpoints import safetensors

    return sum(safetensors.size(shard, safetensors.DTYPES[dtype]) for shard in shards)


def _paths(config: Config) -> tuple[Path, Path]:
    return (
        Path(configs.required(config, "base.source", "--source")),
        Path(configs.required(config, "base.path", "--output")),
    )


def sentence(what: dict[str, Any], dtype: str, output: Path) -> str:
    """One line for a person."""
    return (
        f"{what['kind']} -> {output}: {what['parameters']:,} parameters in {what['tensors']} tensors, "
        f"{what['bytes'] / 1e9:.2f} GB of {dtype} in {what['shards']} file{'s' * (what['shards'] > 1)}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(
        STAGE, __doc__ or "", "python -m recipe.convert --source weights/raw/llama-7b --output weights/llama-7b"
    )
    parser.add_argument("--source", metavar="DIR", help="raw weights: a folder, or a .gguf file (base.source)")
    parser.add_argument("--output", metavar="DIR", help="where the converted weights go (base.path)")
    parser.add_argument("--dtype", choices=("fp16", "fp32"), help="how they are stored (base.dtype)")
    args = parser.parse_args(argv)
    config = load_config(args, {"base.source": args.source, "base.path": args.output, "base.dtype": args.dtype})
    source, output = _paths(config)
    if args.dry_run:
        found = open_source(source)
        _, shards = check(found, source, config.base.dtype)
        plan = describe(found, shards, config.base.dtype)
        show(plan, "would convert " + sentence(plan, config.base.dtype, output), args.json)
        return 0
    manifest = run(config)
    results = manifest["results"]
    text = "converted " + sentence(results, config.base.dtype, output)
    show(manifest, f"{text}\nnext: python -m recipe.corpus --source FILE... --output data/NAME", args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
