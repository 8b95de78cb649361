"""The LoRA adapter: added, loaded, checked."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from recipe.checkpoints.adapter import read_adapter
from recipe.core.config import Lora
from recipe.core.errors import RecipeError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

ADAPTER_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


def add_adapter(model: "LlamaForCausalLM", lora: Lora, seed: int, rslora: bool = False) -> "PeftModel":
    """A fresh LoRA adapter on `model`, in fp32: B is zero, and the seed is set here, before A is drawn.

    rslora: the update is scaled by alpha / sqrt(rank), as in an adapter that is continued (`start`).

    Raises RecipeError if a target module is not a linear layer of the decoder.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    # modules of the decoder only: the loss uses the weight of lm_head and would skip an adapter on it
    modules = model.model.layers.named_modules()
    known = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    unknown = set(lora.target_modules) - known
    if unknown:
        raise RecipeError(f"lora.target_modules: a layer has no {min(unknown)}, it has {', '.join(sorted(known))}")
    set_seed(seed)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
        use_rslora=rslora,
    )
    return get_peft_model(model, settings)


def load_adapter(model: "LlamaForCausalLM", path: Path) -> "PeftModel":
    """A trained adapter on `model`, for inference. Raises RecipeError if `check_adapter` or `read_adapter` does."""
    from peft import PeftModel

    read_adapter(path)  # refuses what a merge would refuse: one model in every stage
    check_adapter(path)
    return PeftModel.from_pretrained(model, str(path)).eval()


def write_adapter(model: "PeftModel", folder: Path) -> None:
    """Save the adapter into an existing folder, with the same bytes in every process."""
    # peft's model card would be empty, and takes longer than all the rest
    model.create_or_update_model_card = lambda output_dir: None  # type: ignore[method-assign]
    model.save_pretrained(str(folder))
    weights = folder / ADAPTER_FILE
    content = weights.read_bytes()
    weights.unlink()  # safetensors makes files that only their owner can read
    weights.write_bytes(content)
    # peft keeps target_modules as a set, whose order depends on the hash seed of the process
    file = folder / CONFIG_FILE
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def check_adapter(path: Path, trained: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter (fp32), after checking that it was trained and saved completely.

    Raises RecipeError: no file, an A without its B, a value that is not finite, or every B zero, like the empty
    adapters of old recipes. With `trained=False` B may be zero: warm-up starts with a learning rate of 0.
    """
    from safetensors.torch import load_file

    file = Path(path) / ADAPTER_FILE
    if not file.is_file():
        raise RecipeError(f"{path} holds no {ADAPTER_FILE}: the run did not finish; `make train` resumes it")
    tensors = load_file(file)
    settings = json.loads((Path(path) / CONFIG_FILE).read_text(encoding="utf-8"))
    missing = [module for module in settings["target_modules"] if not any(f".{module}." in name for name in tensors)]
    pairs = {name.replace(".lora_A.", ".lora_B.") for name in tensors}
    if not tensors or missing or not pairs <= tensors.keys() or len(tensors) != 2 * len(pairs):
        what = f"nothing for {missing[0]}" if missing else "an A without its B"
        raise RecipeError(f"{file} is not a whole adapter ({what} in {len(tensors)} tensors); train again")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RecipeError(f"{file}: {name} holds inf or NaN; lower train.learning_rate and train again")
    if trained and all(tensor.eq(0).all() for name, tensor in tensors.items() if ".lora_B." in name):
        raise RecipeError(f"{file}: every B is zero, so this adapter changes nothing; it was not trained")
    return tensors
