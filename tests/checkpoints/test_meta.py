"""Meta's shards: merged along the right axis, the rotary permutation undone, bad checkpoints refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from recipe.checkpoints import llama as names
from recipe.checkpoints import meta
from recipe.core.errors import RecipeError


def write(folder: Path, model: LlamaForCausalLM, tokenizer: bytes, ranks: int = 1, rows: bool = False) -> Path:
    """`model` as Meta would have saved it: by Meta's names, q and k in pairs, cut as its parallel layers cut."""
    folder.mkdir(exist_ok=True)
    config = model.config
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(ranks)]
    for hf, name in names.meta_names(config.num_hidden_layers).items():
        weight = model.state_dict()[hf]
        if hf.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in hf else config.num_key_value_heads
            half = weight.shape[0] // heads // 2  # element 2i of a head is Hugging Face's i, 2i + 1 its i + half
            order = [head * 2 * half + i + pair * half for head in range(heads) for i in range(half) for pair in (0, 1)]
            weight = weight[order]
        if weight.dim() == 1:
            cut = [weight] * ranks
        else:
            columns = name.endswith(("wo.weight", "w2.weight")) or ("tok_embeddings" in name and not rows)
            cut = list(weight.chunk(ranks, dim=1 if columns else 0))
        for part, piece in zip(parts, cut, strict=True):
            part[name] = piece.clone()
    for rank, part in enumerate(parts):
        torch.save({**part, "rope.freqs": torch.zeros(4)}, folder / f"consolidated.{rank:02d}.pth")
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": -1,
        "multiple_of": 256,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
    }
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder


@pytest.mark.parametrize(("ranks", "rows"), [(1, False), (2, False), (2, True)])
def test_merged_and_unpermuted(
    tmp_path: Path, llama: LlamaForCausalLM, sentencepiece_model: bytes, ranks: int, rows: bool
) -> None:
    source = meta.open_source(write(tmp_path / "meta", llama, sentencepiece_model, ranks, rows))
    state = llama.state_dict()
    assert source.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert source.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(source.tensors[name].read(), tensor), name
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_key_value_heads", "rope_theta", "rms_norm_eps"):
        assert source.config[key] == getattr(llama.config, key)
    assert source.config["tie_word_embeddings"] is False
    assert source.config["max_position_embeddings"] == 4096


def test_to_pairs_is_the_inverse() -> None:
    weight = torch.randn(24, 5)
    assert torch.equal(names.to_halves(names.to_pairs(weight, 3), 3), weight)
    assert not torch.equal(names.to_pairs(weight, 3), weight)


def test_the_tokenizer_may_lie_one_folder_up(
    tmp_path: Path, llama: LlamaForCausalLM, sentencepiece_model: bytes
) -> None:
    folder = write(tmp_path / "7B", llama, sentencepiece_model)
    (folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    assert meta.open_source(folder).files[-1] == tmp_path / "tokenizer.model"
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(RecipeError, match=r"no tokenizer\.model"):
        meta.open_source(folder)


def test_a_tokenizer_json_is_taken_before_a_tokenizer_model(
    tmp_path: Path, llama: LlamaForCausalLM, sentencepiece_model: bytes
) -> None:
    """As LLaMA 3 needs it, whose tokenizer.model is not one of sentencepiece."""
    folder = write(tmp_path / "8B", llama, sentencepiece_model)
    fast = meta.open_source(folder).tokenizer(384).fast
    fast.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    source = meta.open_source(folder)
    assert [file.name for file in source.files[-2:]] == ["tokenizer.json", "tokenizer_config.json"]
    made = source.tokenizer(384)
    assert made.sentencepiece is None and made.fast("the fox").input_ids == fast("the fox").input_ids


def test_a_missing_shard_is_named(tmp_path: Path, llama: LlamaForCausalLM, sentencepiece_model: bytes) -> None:
    folder = write(tmp_path / "meta", llama, sentencepiece_model, ranks=2)
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(RecipeError, match=r"not consolidated\.00\.pth"):
        meta.open_source(folder)


def test_shards_of_two_checkpoints_are_refused(
    tmp_path: Path, llama: LlamaForCausalLM, sentencepiece_model: bytes
) -> None:
    folder = write(tmp_path / "meta", llama, sentencepiece_model, ranks=2)
    torch.save({"norm.weight": torch.zeros(32)}, folder / "consolidated.01.pth")
    with pytest.raises(RecipeError, match="not of one checkpoint"):
        meta.open_source(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dim": None}, "whole number for dim"),
        ({"n_layers": -1}, "whole number for n_layers"),
        ({"n_layers": 10**9}, "whole number for n_layers"),
        ({"n_heads": 5}, "not a multiple"),
        ({"norm_eps": "x"}, "number for norm_eps"),
        ({"use_scaled_rope": True}, "scaled rotary"),
    ],
)
def test_unusable_params_are_refused(
    tmp_path: Path, llama: LlamaForCausalLM, sentencepiece_model: bytes, change: dict[str, object], reason: str
) -> None:
    folder = write(tmp_path / "meta", llama, sentencepiece_model)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({**params, **change}))
    with pytest.raises(RecipeError, match=reason):
        meta.open_source(folder)
    for text in ("{", "[]", "{}"):
        (folder / "params.json").write_text(text)
        with pytest.raises(RecipeError, match=r"params\.json"):
            meta.open_source(folder)
