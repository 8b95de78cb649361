"""Our folders to Meta and GGUF, read back by this room and by torch, gguf and transformers."""

import json
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from recipe.checkpoints import export, gguf_out, gguf_tokenizer
from recipe.checkpoints import gguf as gguf_reader
from recipe.checkpoints import meta as meta_reader
from recipe.core.errors import RecipeError

IDS = torch.tensor([[1, 300, 270, 310, 299, 350, 2]])
TEXTS = ["Hello  world\n", "1234 wer fragt?", "日本🙂", "a</s>b", "", " x "]


def byte_level(name: str, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the spot, with one of llama.cpp's pre-tokenizers."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = gguf_tokenizer.pre_tokenizer(name)
    backend.decoder = decoders.ByteLevel()
    alphabet = list(gguf_tokenizer.pre_tokenizer("gpt-2").alphabet())
    trainer = BpeTrainer(vocab_size=size, special_tokens=["<pad>", "<|bos|>", "</s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(
        ["the quick brown fox 1234 the the, who asks? Wer fragt?\n\n hello hello"] * 50, trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|bos|>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model.float().eval()(IDS).logits


@pytest.fixture
def folder(hf_folder: Path) -> Path:
    """As `convert` leaves it: the tokenizer fast, the weights fp16."""
    from recipe.checkpoints import tokenizer

    tokenizer.from_folder(hf_folder, 384).save(hf_folder)
    LlamaForCausalLM.from_pretrained(hf_folder, torch_dtype=torch.float16).save_pretrained(hf_folder)
    return hf_folder


def test_meta_round_trip_is_exact(folder: Path, tmp_path: Path) -> None:
    export.to_meta(folder, tmp_path / "meta")
    state = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    assert state["layers.1.attention.wk.weight"].shape == (16, 32)
    back = meta_reader.open_source(tmp_path / "meta")
    original = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float16)
    assert back.tensors.keys() == original.state_dict().keys()
    assert all(torch.equal(back.tensors[name].read(), tensor) for name, tensor in original.state_dict().items())
    for key in ("vocab_size", "intermediate_size", "num_key_value_heads", "rope_theta", "max_position_embeddings"):
        assert back.config[key] == getattr(original.config, key)
    assert (tmp_path / "meta" / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


def test_meta_export_of_a_model_without_sentencepiece_can_be_read_again(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.model").unlink()
    export.to_meta(folder, tmp_path / "meta")
    back = meta_reader.open_source(tmp_path / "meta")
    tokenizer = back.tokenizer(back.config["vocab_size"])
    tokenizer.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("hidden", "width"), [(4096, 11008), (5120, 13824), (8192, 28672), (64, 172), (32, 89), (576, 1536)]
)
def test_metas_code_computes_the_right_width_from_the_params(hidden: int, width: int) -> None:
    from transformers import LlamaConfig

    params = export.meta_params(LlamaConfig(hidden_size=hidden, intermediate_size=width, num_attention_heads=4))
    computed = int(2 * (4 * hidden) / 3)  # llama/model.py, FeedForward
    if "ffn_dim_multiplier" in params:
        computed = int(params["ffn_dim_multiplier"] * computed)
    assert params["multiple_of"] * ((computed + params["multiple_of"] - 1) // params["multiple_of"]) == width


def test_gguf_is_read_by_transformers_and_by_this_room(folder: Path, tmp_path: Path) -> None:
    gguf_out.write(folder, tmp_path / "gguf" / "m.gguf")
    wanted = logits(LlamaForCausalLM.from_pretrained(folder))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "gguf", gguf_file="m.gguf", torch_dtype=torch.float32)
    assert torch.allclose(logits(theirs), wanted, atol=1e-5)
    back = gguf_reader.open_source(tmp_path / "gguf" / "m.gguf")
    state = LlamaForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(back.tensors[name].read().float(), tensor.float()) for name, tensor in state.items())
    assert (back.config["rope_theta"], back.config["rms_norm_eps"]) == (50000.0, 1e-5)
    same_tokenizer(back.tokenizer(384).fast, AutoTokenizer.from_pretrained(folder))


def same_tokenizer(one: PreTrainedTokenizerFast, two: PreTrainedTokenizerFast) -> None:
    for text in TEXTS:
        for split in (True, False):
            assert one(text, split_special_tokens=split).input_ids == two(text, split_special_tokens=split).input_ids
    for role in ("bos", "eos", "unk", "pad"):
        assert getattr(one, f"{role}_token_id") == getattr(two, f"{role}_token_id")


def test_sentencepiece_pieces_survive_without_their_model(folder: Path, tmp_path: Path) -> None:
    """The GGUF holds scores; from them the same sentencepiece model is built again."""
    import sentencepiece

    gguf_out.write(folder, tmp_path / "m.gguf")
    model = gguf_reader.open_source(tmp_path / "m.gguf").tokenizer(384).sentencepiece
    one = sentencepiece.SentencePieceProcessor(model_proto=model)
    two = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    assert [one.encode(text) for text in TEXTS] == [two.encode(text) for text in TEXTS]


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "smollm"])
def test_byte_level_tokenizers_survive(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "tokenizer.model").unlink()
    original = byte_level(name, 320)
    original.save_pretrained(folder)
    gguf_out.write(folder, tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == name
    assert len(fields["tokenizer.ggml.tokens"].contents()) == 384
    same_tokenizer(gguf_reader.open_source(tmp_path / "m.gguf").tokenizer(384).fast, original)


def test_an_unknown_pre_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    original = byte_level("gpt-2", 320)
    data = json.loads(original.backend_tokenizer.to_str())
    data["pre_tokenizer"] = {"type": "Whitespace"}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(data)), eos_token="</s>").save_pretrained(
        folder
    )
    (folder / "tokenizer.model").unlink()
    with pytest.raises(RecipeError, match="pre-tokenizer is none of"):
        gguf_out.write(folder, tmp_path / "m.gguf")


def test_tied_weights_are_written_out_for_meta_and_left_out_for_gguf(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    export.to_meta(folder, tmp_path)
    state = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    assert torch.equal(state["output.weight"], state["tok_embeddings.weight"])
    gguf_out.write(folder, tmp_path / "m.gguf")
    assert gguf_reader.open_source(tmp_path / "m.gguf").config["tie_word_embeddings"] is True


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "BF16", "F16"])
def test_quantised_blocks_are_decoded(llama: LlamaForCausalLM, tmp_path: Path, kind: str) -> None:
    """Against the library's own quantisation of a matrix with more rows than are decoded at once."""
    kind_ = gguf.GGMLQuantizationType[kind]
    weight = torch.randn(5000, 64).numpy()
    data = gguf.quants.quantize(weight, kind_)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=kind_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, tensors = gguf_reader.read_file(tmp_path / "m.gguf")
    assert torch.equal(tensors["x"].read().float(), torch.from_numpy(gguf.quants.dequantize(data, kind_).copy()))


def test_a_truncated_gguf_is_refused_at_any_length(folder: Path, tmp_path: Path) -> None:
    gguf_out.write(folder, tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    for size in (3, 10, 100, 1000, 5000, len(data) - 1):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(RecipeError, match="truncated or damaged"):
            gguf_reader.open_source(tmp_path / "cut.gguf")


def test_a_length_without_end_does_not_hang(tmp_path: Path) -> None:
    key = b"general.x"
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    array = (9).to_bytes(4, "little") + (4).to_bytes(4, "little") + (1 << 62).to_bytes(8, "little")
    (tmp_path / "m.gguf").write_bytes(head + len(key).to_bytes(8, "little") + key + array)
    with pytest.raises(RecipeError, match="truncated or damaged"):
        gguf_reader.open_source(tmp_path / "m.gguf")


def test_a_damaged_tokenizer_in_the_metadata_is_refused(folder: Path, tmp_path: Path) -> None:
    gguf_out.write(folder, tmp_path / "m.gguf")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    types, tokens = "tokenizer.ggml.token_type", "tokenizer.ggml.tokens"
    for change in ({types: [257] * 384}, {types: [1]}, {tokens: 3}, {"tokenizer.ggml.model": "bert"}):
        with pytest.raises(RecipeError, match="tokenizer"):
            gguf_tokenizer.from_metadata({**fields, **change}, 384, tmp_path)
