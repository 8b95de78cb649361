"""The convert stage: golden logits, every source kind, done means verified, and bad input that leaves nothing."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recipe import convert
from recipe.checkpoints import export, gguf_out, safetensors
from recipe.core.cli import entry
from recipe.core.manifest import read_manifest, save_manifest, verify, write_manifest


def command(*arguments: object) -> int:
    """As from a shell: the exit code."""
    return entry(lambda: convert.main([str(argument) for argument in arguments]))


def converted(source: Path, output: Path, dtype: str = "fp16") -> Path:
    assert command("--source", source, "--output", output, "--dtype", dtype) == 0
    return output


def fails(capsys: pytest.CaptureFixture[str], source: Path, output: Path, *reasons: str, code: int = 1) -> None:
    """One sentence that says the reasons, the exit code, and nothing left behind."""
    before = sorted(output.parent.rglob("*"))
    assert command("--source", source, "--output", output) == code
    out, err = capsys.readouterr()
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith("error: ")
    assert all(reason in sentence for reason in reasons), sentence
    assert out == ""
    assert not output.exists()
    assert sorted(output.parent.rglob("*")) == before


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A BPE like LLaMA's, trained on the spot."""
    prefix = tmp_path_factory.mktemp("spm") / "t"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the lazy dog sat on the warm stone and looked at the quick brown fox"] * 50),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return prefix.with_suffix(".model").read_bytes()


@pytest.fixture
def raw(tmp_path: Path, spm: bytes) -> Path:
    """A tiny Hugging Face checkpoint."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "raw")
    (tmp_path / "raw" / "tokenizer.model").write_bytes(spm)
    return tmp_path / "raw"


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["meta", "meta_mp2"])
def test_golden_logits_and_greedy_ids(assets: Path, tmp_path: Path, name: str, dtype: str) -> None:
    folder = assets / "models" / "stories260K"
    output = converted(folder / name, tmp_path / "out", dtype)
    # torch 2.0.1 has no fp16 matmul on a CPU
    model = AutoModelForCausalLM.from_pretrained(output, torch_dtype=torch.float32).eval()
    golden = np.load(folder / "golden_logits.npz")
    with torch.no_grad():
        logits = model(torch.tensor(golden["ids"])[None]).logits[0].double().numpy()
    assert np.abs(logits - golden["logits"]).max() < {"fp32": 1e-3, "fp16": 0.02}[dtype]
    ids = json.loads((folder / "golden_greedy_ids.json").read_text())
    made = model.generate(torch.tensor([ids[:1]]), max_new_tokens=len(ids) - 1, do_sample=False)[0].tolist()
    assert made == ids
    assert (
        json.loads((output / "config.json").read_text())["torch_dtype"] == {"fp32": "float32", "fp16": "float16"}[dtype]
    )
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert "Once upon a time" in tokenizer.decode(ids, skip_special_tokens=True)


def test_every_kind_of_source_gives_the_same_model(raw: Path, tmp_path: Path) -> None:
    first = converted(raw, tmp_path / "first")
    wanted = LlamaForCausalLM.from_pretrained(first).state_dict()
    tokenizer = AutoTokenizer.from_pretrained(first)
    export.to_meta(first, tmp_path / "meta")
    gguf_out.write(first, tmp_path / "m.gguf")
    (tmp_path / "folder").mkdir()
    shutil.copy(tmp_path / "m.gguf", tmp_path / "folder")
    for kind, source in (
        ("Meta, 1 shard", tmp_path / "meta"),
        ("GGUF", tmp_path / "m.gguf"),
        ("GGUF", tmp_path / "folder"),
        ("Hugging Face, safetensors", first),
    ):
        output = converted(source, tmp_path / "again" / source.name)
        assert read_manifest(output)["results"]["kind"] == kind
        state = LlamaForCausalLM.from_pretrained(output).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items()), kind
        other = AutoTokenizer.from_pretrained(output)
        text = "the quick  fox\n日本 </s>"
        assert other(text).input_ids == tokenizer(text).input_ids
        assert (other.bos_token_id, other.eos_token_id, other.pad_token_id) == (1, 2, 0)


def test_the_result_is_whole_and_a_second_run_is_skipped(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = converted(raw, tmp_path / "out")
    assert "next: python -m recipe.corpus" in capsys.readouterr().out
    assert verify(output) == []
    manifest = read_manifest(output)
    assert manifest["inputs"].keys() == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.model"
    }  # fmt: skip
    assert manifest["results"]["parameters"] == sum(
        t.numel() for t in LlamaForCausalLM.from_pretrained(raw).parameters()
    )
    generation = json.loads((output / "generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (1, 2, 0)
    written = (output / "model.safetensors").stat().st_mtime_ns
    converted(raw, output)
    assert "already converted" in capsys.readouterr().err
    assert (output / "model.safetensors").stat().st_mtime_ns == written
    converted(raw, output, "fp32")
    assert (output / "model.safetensors").stat().st_mtime_ns != written
    (output / "config.json").write_text("{}")
    converted(raw, output, "fp32")
    assert verify(output) == []


def test_the_same_source_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    one, two = converted(raw, tmp_path / "one"), converted(raw, tmp_path / "two")
    assert read_manifest(one) == read_manifest(two)


def test_a_dry_run_says_what_and_touches_nothing(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--source", raw, "--output", tmp_path / "out", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kind"] == "Hugging Face, safetensors"
    assert plan["bytes"] == 2 * plan["parameters"]
    assert (plan["tensors"], plan["shards"]) == (21, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_shards_load_in_plain_transformers(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = safetensors.plan
    monkeypatch.setattr(safetensors, "plan", lambda tensors, dtype: plan(tensors, dtype, limit=20_000))
    output = converted(raw, tmp_path / "out", "fp32")
    assert len([*output.glob("model-*.safetensors")]) > 2
    state = LlamaForCausalLM.from_pretrained(output).state_dict()
    assert all(torch.equal(state[name], t) for name, t in LlamaForCausalLM.from_pretrained(raw).state_dict().items())


def test_the_well_known_broken_checkpoint_is_repaired_and_the_repair_is_said(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((raw / "config.json").read_text())
    config.update(pad_token_id=-1, bos_token_id=0, eos_token_id=1, architectures=["LLaMAForCausalLM"])
    del config["max_position_embeddings"]
    config["max_sequence_length"] = 2048
    (raw / "config.json").write_text(json.dumps(config))
    broken = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}
    (raw / "tokenizer_config.json").write_text(json.dumps(broken))
    (raw / "special_tokens_map.json").write_text("{}")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    (raw / "generation_config.json").write_text(json.dumps(generation))
    output = converted(raw, tmp_path / "out")
    said = capsys.readouterr().err
    for what in (
        "pad_token_id was -1",
        "LLaMATokenizer",
        "eos_token was ''",
        "eos_token_id was 1, now the tokenizer's 2",
    ):
        assert f"{what}" in said
    repairs = read_manifest(output)["results"]["repairs"]
    assert all(f"repaired: {repair}" in said for repair in repairs)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, 0)
    assert model.config.max_position_embeddings == 2048
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert (model.generation_config.eos_token_id, model.generation_config.bos_token_id) == (2, 1)


def test_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, tmp_path / "none", tmp_path / "out", "does not exist")
    (tmp_path / "empty").mkdir()
    fails(capsys, tmp_path / "empty", tmp_path / "out", "holds no checkpoint", "config.json")
    (tmp_path / "file.txt").write_text("x")
    fails(capsys, tmp_path / "file.txt", tmp_path / "out", "is not a checkpoint")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "empty" / name).write_text("x")
    fails(capsys, tmp_path / "empty", tmp_path / "out", "2 .gguf files")
    fails(capsys, tmp_path / "empty" / "a.gguf", tmp_path / "out", "truncated or damaged")


def test_incomplete_checkpoints(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = LlamaForCausalLM.from_pretrained(raw)
    state = model.state_dict()
    (raw / "model.safetensors").unlink()
    weights = raw / "pytorch_model.bin"

    def broken(changed: dict[str, torch.Tensor], *reasons: str) -> None:
        torch.save(changed, weights)
        fails(capsys, raw, tmp_path / "out", *reasons)

    without = {name: tensor for name, tensor in state.items() if "layers.1" not in name}
    broken(without, "lacks model.layers.1", "(and 8 more)")
    broken({**state, "extra.bias": torch.zeros(1)}, "extra.bias")
    broken({**state, "model.norm.weight": torch.zeros(32, dtype=torch.int8)}, "model.norm.weight", "int8", "quantized")
    broken({**state, "model.norm.weight": torch.zeros(3)}, "model.norm.weight", "[3]", "[32]")
    broken({**state, "model.norm.weight": state["model.norm.weight"] * float("nan")}, "model.norm.weight", "not finite")
    broken({**state, "model.norm.weight": torch.full((32,), 1e5).bfloat16()}, "model.norm.weight", "--dtype fp32")
    torch.save(state, weights)
    weights.write_bytes(weights.read_bytes()[:5000])
    fails(capsys, raw, tmp_path / "out", "truncated or damaged")
    (raw / "tokenizer.model").unlink()
    torch.save(state, weights)
    fails(capsys, raw, tmp_path / "out", "tokenizer")


def test_a_tokenizer_of_another_size(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = sentencepiece_model_pb2.ModelProto.FromString((raw / "tokenizer.model").read_bytes())
    proto.pieces.add(piece="one more", score=-1.0, type=1)
    (raw / "tokenizer.model").write_bytes(proto.SerializeToString())
    fails(capsys, raw, tmp_path / "out", "321 tokens", "320 rows")


class Call:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_pickle_that_asks_for_anything_but_tensors(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (raw / "model.safetensors").unlink()
    torch.save({"a": Call()}, raw / "pytorch_model.bin")
    fails(capsys, raw, tmp_path / "out", "posix.system")
    assert not (tmp_path / "pwned").exists()


def test_a_disk_that_is_too_small_is_known_before(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    fails(capsys, raw, tmp_path / "out", "0.1 GB free", "another disk")


def test_a_disk_that_fills_up_leaves_nothing(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def full(tensor: torch.Tensor, name: str, dtype: torch.dtype) -> torch.Tensor:
        written.append(name)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return tensor.to(dtype)

    monkeypatch.setattr(safetensors, "cast", full)
    fails(capsys, raw, tmp_path / "out", "no space is left")
    assert len(written) == 6


def test_strangers_folders_and_missing_flags(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert command("--source", raw, "--output", tmp_path / "mine") == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    assert command("--output", tmp_path / "out") == 2
    assert "--source" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model"])
def test_a_download_that_differs_from_its_manifest_is_refused(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source = shutil.copytree(raw, tmp_path / "download")
    write_manifest(source, "fetch", {}, {}, {})
    manifest = read_manifest(source)
    manifest["outputs"][name]["sha256"] = "0" * 64
    save_manifest(source / "manifest.json", manifest)
    fails(capsys, source, tmp_path / "out", f"{name} was altered: its sha256 differs from the manifest")


def test_a_checkpoint_that_changes_while_it_is_read_is_an_error(tiny_source, tmp_path, monkeypatch, capsys):
    source = shutil.copytree(tiny_source, tmp_path / "source")
    (weights,) = source.glob("*.safetensors")
    write = safetensors.write

    def slow_copy(*arguments):
        write(*arguments)
        os.utime(weights, ns=(1, 1))  # rsync --inplace, still at work

    monkeypatch.setattr(safetensors, "write", slow_copy)
    fails(capsys, source, tmp_path / "out", "was written to while it was read")
