"""The settings of a run in the terms of transformers' Trainer."""

from pathlib import Path

import torch
from transformers import TrainingArguments

from recipe.core.config import Train
from recipe.core.text import say
from recipe.pascal.dtypes import compute_dtype

OPTIMIZERS = {"adamw": "adamw_torch", "adamw8bit": "adamw_bnb_8bit"}


def training_arguments(
    train: Train, folder: Path, device: torch.device, processes: int = 1, split: bool = False
) -> TrainingArguments:
    """The fields of `train` in Trainer's terms. One GPU is used even if more are visible, but for a split base."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        logging_dir=str(folder),  # the default has a time and the host name in it
        seed=train.seed,
        data_seed=train.seed,
        num_train_epochs=1,  # the packs of all epochs are one pass
        per_device_train_batch_size=1,  # a pack
        gradient_accumulation_steps=train.gradient_accumulation_steps // processes,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_ratio=train.warmup_ratio,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=OPTIMIZERS[train.optimizer],
        # autocast and a loss scale: without it fp16 gradients of a mean over many tokens underflow
        fp16=compute_dtype(device) == torch.float16,
        use_cpu=device.type != "cuda",
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default hides exactly what must stop the run
        eval_strategy="steps" if train.eval_steps else "no",
        eval_steps=train.eval_steps or None,
        save_steps=train.save_steps,
        save_total_limit=None,  # `rotate` removes old checkpoints once the new one is complete
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,  # Progress shows tokens per second and the remaining time
    )
    if arguments.n_gpu > 1:  # else Trainer would wrap the model in DataParallel, which cannot split a pack
        if not split:
            used = arguments.device
            say(f"{arguments.n_gpu} GPUs are visible, the run uses {used}: choose one by CUDA_VISIBLE_DEVICES")
        arguments._n_gpu = 1
    return arguments
