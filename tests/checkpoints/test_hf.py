"""Hugging Face folders in all their layouts, and the broken ones."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from recipe.checkpoints import hf
from recipe.core.errors import RecipeError
from recipe.core.manifest import write_manifest


def change(path: Path, **settings: object) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, **settings}))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shard", ["40KB", "1GB"])
def test_every_layout_gives_the_model(hf_folder: Path, llama: LlamaForCausalLM, safe: bool, shard: str) -> None:
    for file in hf_folder.glob("model*"):
        file.unlink()
    llama.save_pretrained(hf_folder, safe_serialization=safe, max_shard_size=shard)
    assert len([*hf_folder.glob("*.index.json")]) == (shard == "40KB")
    source = hf.open_source(hf_folder)
    assert source.tensors.keys() == llama.state_dict().keys()
    assert all(torch.equal(source.tensors[name].read(), tensor) for name, tensor in llama.state_dict().items())
    assert source.repairs == []
    assert {file.name for file in source.files} >= {"config.json", "tokenizer.model", "generation_config.json"}


def test_old_rotary_buffers_and_a_tied_head_are_left_out(hf_folder: Path, llama: LlamaForCausalLM) -> None:
    (hf_folder / "model.safetensors").unlink()
    state = {**llama.state_dict(), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save(state, hf_folder / "pytorch_model.bin")
    assert hf.open_source(hf_folder).tensors.keys() == llama.state_dict().keys()
    change(hf_folder / "config.json", tie_word_embeddings=True)
    assert "lm_head.weight" not in hf.open_source(hf_folder).tensors


def test_the_rotary_settings_of_transformers_5_are_kept(hf_folder: Path) -> None:
    config = json.loads((hf_folder / "config.json").read_text())
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_theta": 12345.0, "rope_type": "linear", "factor": 4.0}
    (hf_folder / "config.json").write_text(json.dumps(config))
    read = hf.open_source(hf_folder).config
    assert (read["rope_theta"], read["rope_scaling"]) == (12345.0, {"rope_type": "linear", "factor": 4.0})


def test_a_padding_of_minus_one_is_repaired_and_said(hf_folder: Path) -> None:
    change(hf_folder / "config.json", pad_token_id=-1)
    assert any("pad_token_id was -1" in repair for repair in hf.open_source(hf_folder).repairs)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "gpt2"}, "expected 'llama'"),
        ({"quantization_config": {"bits": 4}}, "quantized already"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ],
)
def test_other_models_are_refused(hf_folder: Path, settings: dict[str, object], reason: str) -> None:
    change(hf_folder / "config.json", **settings)
    with pytest.raises(RecipeError, match=reason):
        hf.open_source(hf_folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"rms_norm_eps": "1e-5"},
        {"rms_norm_eps": None},
        {"rms_norm_eps": float("nan")},
        {"rms_norm_eps": -1e-5},
        {"rope_theta": 0},
        {"rope_theta": float("inf")},
        {"max_position_embeddings": "2048"},
        {"max_position_embeddings": 10**18},
        {"max_position_embeddings": -1},
        {"num_key_value_heads": -2},
        {"num_key_value_heads": 3},
        {"head_dim": -8},
        {"head_dim": 7},
        {"vocab_size": True},
        {"tie_word_embeddings": "no"},
        {"eos_token_id": "</s>"},
        {"eos_token_id": list(range(100))},
        {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
        {"rope_scaling": {"rope_type": "evil", "factor": 2.0}},
        {"rope_scaling": "linear"},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
def test_a_value_that_no_llama_has_is_refused(hf_folder: Path, settings: dict[str, object]) -> None:
    change(hf_folder / "config.json", **settings)
    with pytest.raises(RecipeError, match=rf"config\.json: .*({min(settings)}|heads).*, expected|: expected"):
        hf.open_source(hf_folder)


def test_keys_that_no_llama_has_do_not_reach_transformers(hf_folder: Path) -> None:
    before = hf.open_source(hf_folder).config
    hostile = {"num_labels": 10**9, "attn_implementation": "flash_attention_2", "save_pretrained": 1, "torchscript": 1}
    change(hf_folder / "config.json", **hostile)
    assert hf.open_source(hf_folder).config == before


def test_names_under_a_wrapper_and_a_tied_model_without_its_flag(hf_folder: Path, llama: LlamaForCausalLM) -> None:
    (hf_folder / "model.safetensors").unlink()
    state = llama.state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, hf_folder / "pytorch_model.bin")
    source = hf.open_source(hf_folder)
    assert source.tensors.keys() == state.keys() and "'module.'" in source.repairs[0]
    assert torch.equal(source.tensors["lm_head.weight"].read(), state["lm_head.weight"])
    del state["lm_head.weight"]
    torch.save(state, hf_folder / "pytorch_model.bin")
    source = hf.open_source(hf_folder)
    assert source.config["tie_word_embeddings"] is True and "tied to the embedding" in source.repairs[0]


def test_an_index_that_no_manifest_lists_is_not_read(hf_folder: Path) -> None:
    write_manifest(hf_folder, "convert", {}, {}, {})
    (hf_folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "evil.safetensors"}}')
    assert "model.norm.weight" in hf.open_source(hf_folder).tensors


def test_an_index_is_held_to_its_word(hf_folder: Path, llama: LlamaForCausalLM) -> None:
    (hf_folder / "model.safetensors").unlink()
    llama.save_pretrained(hf_folder, max_shard_size="40KB")
    index = hf_folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    change(index, weight_map={**weight_map, "model.norm.weight": "../elsewhere.safetensors"})
    with pytest.raises(RecipeError, match="not a file beside it"):
        hf.open_source(hf_folder)
    change(index, weight_map={**weight_map, "model.norm.weight": weight_map["model.embed_tokens.weight"]})
    with pytest.raises(RecipeError, match=r"lacks model\.norm\.weight, which its index promises"):
        hf.open_source(hf_folder)
    change(index, weight_map={})
    with pytest.raises(RecipeError, match="no weight_map"):
        hf.open_source(hf_folder)
    change(index, weight_map=weight_map)
    (hf_folder / weight_map["model.norm.weight"]).unlink()
    with pytest.raises(RecipeError, match="is missing"):
        hf.open_source(hf_folder)


def test_a_folder_without_weights_or_with_a_broken_config(hf_folder: Path) -> None:
    (hf_folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="no weights"):
        hf.open_source(hf_folder)
    (hf_folder / "config.json").write_text("{")
    with pytest.raises(RecipeError, match="not JSON"):
        hf.open_source(hf_folder)
