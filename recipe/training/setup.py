"""What a run trains on: its packs, and the base with the adapter."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from recipe.core.config import Config
from recipe.core.run import Run
from recipe.core.text import say
from recipe.model import accumulation
from recipe.model.adapter import add_adapter
from recipe.model.load import load_base, load_tokenizer, save_copy, split_devices
from recipe.model.prepare import prepare_for_training
from recipe.model.start import continue_adapter
from recipe.pascal.gemm import int8_shapes
from recipe.training.dataset import PackedDataset, encode_file
from recipe.training.distributed import Ranks

if TYPE_CHECKING:
    from peft import PeftModel


def load_data(config: Config) -> tuple[PackedDataset, PackedDataset]:
    """The packs of the run and those of the validation set."""
    corpus, settings = Path(config.corpus.path), config.train
    tokenizer = load_tokenizer(Path(config.base.path))
    rows, val_rows = (
        encode_file(corpus / name, tokenizer, config.corpus.template) for name in ("train.jsonl", "val.jsonl")
    )
    budget, per_step = settings.micro_batch_tokens, settings.gradient_accumulation_steps
    data = PackedDataset(rows, budget, settings.seed, settings.epochs, per_step)
    return data, PackedDataset(val_rows, budget)


def load_model(
    config: Config, opened: Run, copy: Path | None, device: torch.device, recompute: int, ranks: Ranks
) -> "PeftModel":
    """The base with a new adapter, or with that of `lora.start`, prepared for training.

    copy: the quantized copy of the base, if there is one; recompute: layers with activation checkpointing.
    """
    base, precision, settings = Path(config.base.path), config.base.precision, config.train
    devices = split_devices(device, config.base.split)
    say(f"load {base} as {precision} on {' and '.join(map(str, devices))}")
    frozen = load_base(base, precision, devices, copy)
    if copy is None and not ranks.rank:
        save_copy(frozen, base, precision)
    model = (continue_adapter if config.lora.start else add_adapter)(frozen, config.lora, settings.seed)
    choice = None
    if settings.matmul_accumulation == "fp16":
        with ranks.first():
            choice = accumulation.choose(opened.matmul, int8_shapes(model), settings.micro_batch_tokens, device)
    prepare_for_training(model, recompute, choice)
    return model
