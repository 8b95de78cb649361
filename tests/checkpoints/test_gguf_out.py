"""GGUF as written here, against llama.cpp's library, transformers, and the logits of the model it was made from."""

import dataclasses
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from recipe.checkpoints import gguf as gguf_reader
from recipe.checkpoints import gguf_out, llama, merging, safetensors, tokenizer
from recipe.checkpoints.open import open_source
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError
from recipe.model.stream import stream_logits

IDS = [1, 300, 270, 310, 299, 350, 2]
# relative error of a matrix of normal values in each type, with some slack; measured with llama.cpp's own library
ERRORS = {"f16": 4e-4, "q8_0": 0.007, "q5_1": 0.04, "q5_0": 0.05, "q4_1": 0.08, "q4_0": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sentencepiece_model: bytes) -> Path:
    """A converted model whose rows are whole blocks of 32, but for one matrix."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).half().save_pretrained(path)
    (path / "tokenizer.model").write_bytes(sentencepiece_model)
    tokenizer.from_folder(path, 384).save(path)
    return path


def logits(tensors, folder: Path) -> torch.Tensor:
    return stream_logits(LlamaConfig.from_pretrained(folder), tensors, IDS)


@pytest.mark.parametrize("kind", gguf_out.KINDS)
def test_the_logits_of_every_kind_are_close_to_the_originals(folder: Path, tmp_path: Path, kind: str) -> None:
    gguf_out.write(folder, tmp_path / "m.gguf", kind)
    expected = logits(safetensors.open_folder(folder), folder)
    error = (logits(gguf_reader.open_source(tmp_path / "m.gguf").tensors, folder) - expected).norm() / expected.norm()
    assert error < 4 * ERRORS[kind]
    assert error > ERRORS[kind] / 20 or kind == "f16", "this is a quantized file"
    if kind == "f16":
        assert error == 0


@pytest.mark.parametrize("kind", gguf_out.KINDS)
def test_every_matrix_is_what_the_library_makes_of_it(folder: Path, tmp_path: Path, kind: str) -> None:
    gguf_out.write(folder, tmp_path / "m.gguf", kind)
    source = safetensors.open_folder(folder)
    names = {new: old for old, new in llama.gguf_names(2).items()}
    for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors:
        weight = source[names[tensor.name]].read()
        if heads := {"attn_q.weight": 4, "attn_k.weight": 2}.get(tensor.name.split(".", 2)[-1]):
            weight = llama.to_pairs(weight, heads)
        wanted = gguf.quants.quantize(weight.float().numpy(), tensor.tensor_type)
        assert tensor.data.tobytes() == wanted.tobytes(), tensor.name
        back = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        assert (back.reshape(weight.shape) - weight.float()).norm() <= ERRORS[kind] * weight.float().norm()


def test_norms_stay_fp32_and_the_outer_layers_8_bits(folder: Path, tmp_path: Path) -> None:
    gguf_out.write(folder, tmp_path / "m.gguf", "q4_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert {kinds[name] for name in kinds if "norm" in name} == {"F32"}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q8_0"
    assert kinds["blk.0.attn_q.weight"] == kinds["blk.1.ffn_down.weight"] == "Q4_0"
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_0


def test_a_matrix_whose_rows_are_not_whole_blocks_stays_fp16(
    hf_folder: Path, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    llama.half().save_pretrained(hf_folder)
    llama.float()
    tokenizer.from_folder(hf_folder, 384).save(hf_folder)
    gguf_out.write(hf_folder, tmp_path / "m.gguf", "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"  # 88 columns
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_transformers_reads_quantized_files(folder: Path, tmp_path: Path, kind: str) -> None:
    gguf_out.write(folder, tmp_path / "m.gguf", kind)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", torch_dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits(gguf_reader.open_source(tmp_path / "m.gguf").tensors, folder), theirs)


def test_the_chat_template_is_in_the_metadata(folder: Path, tmp_path: Path) -> None:
    gguf_out.write(folder, tmp_path / "m.gguf", chat_template="{{ messages }}")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    gguf_out.write(folder, tmp_path / "n.gguf")
    assert "tokenizer.chat_template" not in gguf.GGUFReader(tmp_path / "n.gguf").fields


def test_a_split_model_is_the_same_one(folder: Path, tmp_path: Path) -> None:
    gguf_out.write(folder, tmp_path / "one.gguf", "q8_0", "{{ messages }}")
    gguf_out.write(folder, tmp_path / "many.gguf", "q8_0", "{{ messages }}", shard_bytes=40_000)
    files = sorted(tmp_path.glob("many-*.gguf"))
    assert len(files) > 2 and files[0].name == f"many-00001-of-{len(files):05d}.gguf"
    for file in files:
        sizes = [tensor.n_bytes for tensor in gguf.GGUFReader(file).tensors]
        assert sizes and (sum(sizes) <= 40_000 or len(sizes) == 1)
    one, many = (open_source(tmp_path / name).tensors for name in ("one.gguf", files[-1].name))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name].read(), many[name].read()) for name in one)


def test_an_end_mark_that_is_not_eos_is_named(folder: Path, tmp_path: Path) -> None:
    gguf_out.write(folder, tmp_path / "m.gguf", end_id=300)
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 300
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2


def test_an_adapter_comes_back_as_it_was(folder: Path, tmp_path: Path, deltas) -> None:
    config = LlamaConfig.from_pretrained(folder)
    gguf_out.write_adapter(deltas, config, tmp_path / "lora.gguf")
    back = gguf_reader.read_adapter(tmp_path / "lora.gguf", config.to_dict())
    assert back.keys() == deltas.keys()
    for name, factors in deltas.items():
        assert all(torch.equal(one, two) for one, two in zip(factors, back[name], strict=True))
    gguf_out.write(folder, tmp_path / "base.gguf")
    with pytest.raises(RecipeError, match="is not a LoRA adapter"):
        gguf_reader.read_adapter(tmp_path / "base.gguf", config.to_dict())
    with pytest.raises(RecipeError, match=r"blk\.1\..* is not a layer of this base"):
        gguf_reader.read_adapter(tmp_path / "lora.gguf", {**config.to_dict(), "num_hidden_layers": 1})


@pytest.fixture(scope="module")
def deltas() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """On layers with and without a rotary layout."""
    shapes = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64)}
    made = {
        f"model.layers.{layer}.self_attn.{name}.weight": (torch.randn(rows, 4) * 0.1, torch.randn(4, columns) * 0.1)
        for name, (rows, columns) in shapes.items()
        for layer in (0, 1)
    }
    return {**made, "model.layers.1.mlp.down_proj.weight": (torch.randn(64, 4) * 0.1, torch.randn(4, 96) * 0.1)}


def test_an_adapter_beside_the_base_is_the_merged_model(folder: Path, tmp_path: Path, deltas) -> None:
    """In GGUF's own layout, as llama.cpp adds it: W + alpha / r * BA."""
    config = LlamaConfig.from_pretrained(folder)
    gguf_out.write_adapter(deltas, config, tmp_path / "lora.gguf")
    gguf_out.write(folder, tmp_path / "base.gguf")
    merged = tmp_path / "merged"
    merged.mkdir()
    merging.write_merged(folder, deltas, merged)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (merged / name).write_bytes((folder / name).read_bytes())
    gguf_out.write(merged, tmp_path / "merged.gguf")

    adapter = gguf.GGUFReader(tmp_path / "lora.gguf")
    assert adapter.fields["general.type"].contents() == "adapter"
    assert adapter.fields["general.architecture"].contents() == "llama"
    assert adapter.fields["adapter.type"].contents() == "lora"
    alpha = adapter.fields["adapter.lora.alpha"].contents()
    factors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in adapter.tensors}
    assert len(factors) == 2 * len(deltas)
    weights = {}
    for name in ("base", "merged"):
        tensors = gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors
        weights[name] = {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in tensors}
    for name, weight in weights["base"].items():
        if f"{name}.lora_a" in factors:
            a, b = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
            weight = weight + alpha / a.shape[0] * (b @ a)
        torch.testing.assert_close(weight, weights["merged"][name], rtol=1e-3, atol=1e-3)
    assert (weights["base"]["blk.0.attn_k.weight"] - weights["merged"]["blk.0.attn_k.weight"]).abs().max() > 0.01


def test_adapters_that_gguf_cannot_express_are_refused(folder: Path, tmp_path: Path, deltas) -> None:
    config = LlamaConfig.from_pretrained(folder)
    one = {"model.layers.0.self_attn.v_proj.weight": (torch.zeros(32, 2), torch.zeros(2, 64))}
    with pytest.raises(RecipeError, match=r"ranks \[2, 4\]"):
        gguf_out.write_adapter({**deltas, **one}, config, tmp_path / "a.gguf")
    with pytest.raises(RecipeError, match="no name for"):
        gguf_out.write_adapter({"model.layers.9.x.weight": (torch.zeros(4, 2), torch.zeros(2, 4))}, config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_one_tensor(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor is read after the one before it was written."""
    events: list[str] = []

    def watched(tensor: LazyTensor) -> LazyTensor:
        return dataclasses.replace(tensor, read=lambda: (events.append("read"), tensor.read())[1])

    real = safetensors.open_file
    monkeypatch.setattr(
        safetensors, "open_file", lambda path: {name: watched(tensor) for name, tensor in real(path).items()}
    )
    write = gguf.GGUFWriter.write_tensor_data
    monkeypatch.setattr(
        gguf.GGUFWriter, "write_tensor_data", lambda self, data: (events.append("write"), write(self, data))[1]
    )
    gguf_out.write(folder, tmp_path / "m.gguf", "q8_0")
    assert events == ["read", "write"] * (len(events) // 2) and len(events) == 2 * 21


def test_a_split_file_is_read_whole(folder: Path, tmp_path: Path) -> None:
    """Split by llama.cpp's own library."""
    gguf_out.write(folder, tmp_path / "m.gguf", "q8_0")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    writer = gguf.GGUFWriter(None, "llama", split_max_size=40_000)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    (tmp_path / "split").mkdir()
    writer.write_header_to_file(tmp_path / "split" / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shards = sorted((tmp_path / "split").iterdir())
    assert len(shards) > 2
    whole = gguf_reader.open_source(tmp_path / "m.gguf")
    for path in (tmp_path / "split", shards[0], shards[1]):
        source = open_source(path)
        assert source.files == tuple(shards) and source.config == whole.config
        assert source.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(source.tensors[name].read(), whole.tensors[name].read()) for name in whole.tensors)
    shards[1].unlink()
    with pytest.raises(RecipeError, match=r"00002-of-.* is missing"):
        open_source(shards[0])
