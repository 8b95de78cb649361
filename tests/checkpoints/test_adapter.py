"""Adapters that peft and others saved: their W + BA is peft's own, and what it cannot express is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from recipe.checkpoints.adapter import read_deltas
from recipe.core.errors import RecipeError

MODULES = ["q_proj", "down_proj"]


def save(llama: LlamaForCausalLM, folder: Path, **settings: object) -> dict[str, torch.Tensor]:
    """A peft adapter with a B that is not zero, saved to `folder`; the weights that peft merges it into."""
    import copy

    tuned = get_peft_model(copy.deepcopy(llama), LoraConfig(r=4, lora_alpha=12, target_modules=MODULES, **settings))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(folder)
    return tuned.merge_and_unload().state_dict()


def check_merges(llama: LlamaForCausalLM, folder: Path, merged: dict[str, torch.Tensor]) -> None:
    deltas, base = read_deltas(folder), llama.state_dict()
    assert {name.split(".")[-2] for name in deltas} == set(MODULES) and len(deltas) == 4
    for name, weight in base.items():
        change = deltas[name][0] @ deltas[name][1] if name in deltas else torch.zeros(())
        torch.testing.assert_close(weight + change, merged[name])
    assert any(not torch.equal(base[name], merged[name]) for name in base)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_plain_peft_folder(llama: LlamaForCausalLM, tmp_path: Path, rslora: bool) -> None:
    check_merges(llama, tmp_path, save(llama, tmp_path, use_rslora=rslora))


def test_adapter_model_bin_as_alpaca_lora_saves_it(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    merged = save(llama, tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(state, tmp_path / "adapter_model.bin")
    config = {  # of tloen/alpaca-lora-7b, with the numbers of this test
        "base_model_name_or_path": "decapoda-research/llama-7b-hf",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 12,
        "lora_dropout": 0.05,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": MODULES,
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    check_merges(llama, tmp_path, merged)
    torch.save(
        {name.replace(".weight", ".default.weight"): tensor for name, tensor in state.items()},
        tmp_path / "adapter_model.bin",
    )
    check_merges(llama, tmp_path, merged)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_a_bin_file_is_not_executed(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    save(llama, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"a": Evil()}, tmp_path / "adapter_model.bin")
    with pytest.raises(RecipeError, match=r"asks for \w+\.exec"):
        read_deltas(tmp_path)


def test_what_a_merge_cannot_express_is_refused_by_name(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    for number, (settings, name) in enumerate(
        (
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
            ({"use_dora": True}, "use_dora"),
            ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
            ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
            ({"bias": "all"}, "bias"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        )
    ):
        save(llama, tmp_path / str(number), **settings)
        with pytest.raises(RecipeError, match=f"sets {name}"):
            read_deltas(tmp_path / str(number))


def change(path: Path, **settings: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_damaged_adapters_are_refused(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(llama, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = load_file(file)
    first_b = next(name for name in whole if "lora_B" in name)

    def refused(tensors: dict[str, torch.Tensor], reason: str) -> None:
        save_file(tensors, file)
        with pytest.raises(RecipeError, match=reason):
            read_deltas(tmp_path)

    refused({name: tensor for name, tensor in whole.items() if name != first_b}, "not a whole adapter")
    refused({**whole, first_b: whole[first_b][:, :2].contiguous()}, "not a whole adapter")
    refused({**whole, first_b: whole[first_b] * float("nan")}, "inf or NaN")
    refused({**whole, "base_model.model.lm_head.weight": torch.zeros(2)}, "not part of a plain LoRA adapter")
    refused({}, "not a whole adapter")
    file.unlink()
    with pytest.raises(RecipeError, match=r"adapter_model\.safetensors nor adapter_model\.bin"):
        read_deltas(tmp_path)
    for settings in ({"r": 0}, {"r": "4"}, {"lora_alpha": float("nan")}, {"peft_type": "IA3"}):
        save(llama, tmp_path)
        change(tmp_path / "adapter_config.json", **settings)
        with pytest.raises(RecipeError, match=r"adapter_config\.json: .*, expected"):
            read_deltas(tmp_path)
