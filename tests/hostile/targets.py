"""Everything that reads a file of others, as a function of bytes: it returns, or raises RecipeError, soon."""

import contextlib
import csv
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from recipe.checkpoints import adapter, gguf, hf_config, meta, pth, safetensors, tokenizer, tokenizer_json
from recipe.checkpoints.files import read_object
from recipe.checkpoints.source import LazyTensor
from recipe.conversations.cleaning.html import clean_text
from recipe.conversations.formats import detect
from recipe.conversations.templates import custom
from recipe.core import config
from recipe.core.errors import RecipeError
from recipe.core.manifest import build_manifest, digest, read_manifest
from recipe.evaluation import choices
from recipe.training import state

FOLDER = Path(tempfile.mkdtemp())
SMALL = 1 << 16  # elements of a tensor that is read whole
Read = Callable[[Path], object]


def _records(path: Path) -> None:
    ends, size = 0, path.stat().st_size
    packed = path.read_bytes()[:4] in (b"\x28\xb5\x2f\xfd",) or path.read_bytes()[:2] == b"\x1f\x8b"
    for number, record in enumerate(detect.raw_records(path, path.name)):
        assert path.suffix != ".json" or ends <= record.offset
        assert path.suffix != ".json" or packed or record.offset + record.size <= size
        ends = record.offset + record.size
        list(detect.conversations(record, number, path.name))


def _tensors(tensors: dict[str, LazyTensor]) -> None:
    for tensor in tensors.values():
        if tensor.numel < SMALL:
            tensor.read()


def _template(path: Path) -> None:
    custom._load.cache_clear()
    custom.load(path)


def _state(path: Path) -> None:
    state.read_state(path.parent)


# Name -> (the file's name, what reads it)
TARGETS: dict[str, tuple[str, Read]] = {
    "conversations": ("x.json", _records),
    "lines": ("x.jsonl", _records),
    "csv": ("x.csv", _records),
    "parquet": ("x.parquet", _records),
    "html": ("x.txt", lambda path: clean_text(path.read_text(encoding="utf-8", errors="replace"))),
    "pth": ("x.pth", lambda path: _tensors(pth.read(path))),
    "safetensors": ("x.safetensors", lambda path: _tensors(safetensors.open_file(path))),
    "gguf": ("x.gguf", lambda path: _tensors(gguf.read_file(path)[1])),
    "config.json": ("config.json", lambda path: hf_config.read(path.parent, [])),
    "params.json": ("params.json", meta._params),
    "tokenizer.json": ("tokenizer.json", lambda path: tokenizer_json._checked(tokenizer_json._read(path), path, 9, [])),
    "tokenizer.model": ("tokenizer.model", lambda path: tokenizer._proto(path.read_bytes(), path)),
    "adapter": ("adapter_config.json", lambda path: adapter._settings(read_object(path), path)),
    "config.toml": ("x.toml", config.load),
    "template": ("y.toml", _template),
    "manifest": ("manifest.json", lambda path: read_manifest(path.parent)),
    "state": ("training_state.json", _state),
    "choices": ("x.choices", choices.read),
}


def read(name: str, data: bytes) -> None:
    """Raises anything but RecipeError where a defect is."""
    file, reader = TARGETS[name]
    path = FOLDER / file
    path.write_bytes(data)
    with contextlib.suppress(RecipeError):
        reader(path)
    if name == "safetensors":
        path.unlink()


def seeds() -> dict[str, list[bytes]]:
    """Whole files of every kind, from which damaged ones are made."""
    import gguf as library
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import sentencepiece
    import torch
    from safetensors.torch import save

    share = {"id": "a", "conversations": [{"from": "human", "value": "Hi 你"}, {"from": "gpt", "value": "`x` <b>"}]}
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]]}
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"text": "x"}]}]}
    table = io.BytesIO()
    pq.write_table(pa.table({"instruction": ["a", "b"], "output": ["c", "d"]}), table)
    rows = io.StringIO()
    csv.writer(rows).writerows([["instruction", "output"], ["a, b", 'say "x"'], ["c", "d\ne"]])
    weights = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3, dtype=torch.float16)}
    zipped = io.BytesIO()
    torch.save(weights, zipped)
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c the quick brown fox"] * 9),
        model_writer=pieces,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    llama = {"model_type": "llama", "hidden_act": "silu", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 16}
    llama |= {"num_hidden_layers": 2, "num_attention_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    params = {"dim": 8, "n_layers": 2, "n_heads": 2, "multiple_of": 4, "norm_eps": 1e-6, "vocab_size": 9}
    added = {"id": 0, "content": "<s>", "special": True, "normalized": False}
    bpe = {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]], "byte_fallback": True}
    lora = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    manifest = build_manifest("s", {}, {"raw": "0"}, {"n": 1}, {"a": {"sha256": "00", "bytes": 1}})
    nested = {"dict": [["optimizer", {"tuple": [1, {"tensor": "state.x"}]}], ["scaler", None]]}
    choice = {"question": "Is it?", "choices": ["yes", "no"], "answer": 0}
    (FOLDER / "training_state.safetensors").write_bytes(save({"state.x": torch.zeros(1)}))
    file = FOLDER / "seed.gguf"
    writer = library.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_token_list(["<s>", "a"])
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), dtype=np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    example = Path(__file__).parents[2] / "recipe" / "configs" / "demo.toml"
    own = 'system_turn = "{system} "\nuser_turn = "U: {user} "\nassistant_header = "A:"\n'
    own += 'assistant_turn = " {assistant}{eos}"\n'
    html = '<div class="markdown"><p>a<code>b</code></p><pre>Copy code\nx</pre></div>python\nCopy code\n1 / 2'
    return {
        "conversations": [_json([share, alpaca]), _json({"data": [share]}), _json(chat)],
        "lines": [b"\n".join(map(_json, (share, alpaca, chat))), _json(share) + b"\n[1, 2]\n"],
        "csv": [rows.getvalue().encode()],
        "parquet": [table.getvalue()],
        "html": [html.encode()],
        "pth": [zipped.getvalue(), _stored(zipped.getvalue())],
        "safetensors": [save(weights)],
        "gguf": [file.read_bytes()],
        "config.json": [_json(llama), _json({**llama, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})],
        "params.json": [_json(params)],
        "tokenizer.json": [_json({"added_tokens": [added], "normalizer": None, "model": bpe})],
        "tokenizer.model": [pieces.getvalue()],
        "adapter": [_json(lora)],
        "config.toml": [example.read_bytes()],
        "template": [own.encode()],
        "manifest": [_json(manifest), _json({**manifest, "sha256": digest(manifest)})],
        "state": [_json(nested)],
        "choices": [_json(choice) + b"\n" + _json({"ctx": "a", "endings": ["b", "c"], "label": "1"})],
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _stored(data: bytes) -> bytes:
    """The same zip with its members in another order."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as other:
        for name in sorted(archive.namelist()):
            other.writestr(name, archive.read(name))
    return out.getvalue()
