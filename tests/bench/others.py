"""The other ways of training that train.py compares this recipe with, on the same token ids and labels.

Each function returns a trainer of its own library whose `train()` makes one optimizer step over all rows.
"""

from pathlib import Path
from typing import Any

SEPARATE = ("trl", "llamafactory")  # ways with an environment of their own
OTHERS = ("usual", "grouped", *SEPARATE)
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
LAYERS = {"qv": ("q_proj", "v_proj"), "all": (*ATTENTION, *MLP)}
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": list(LAYERS["qv"])}
Rows = list[dict[str, list[int]]]


def common(folder: Path, steps: int, batch: int) -> dict[str, Any]:
    """TrainingArguments of the other ways: one optimizer step over all conversations, as in this recipe."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": steps,
        "num_train_epochs": 1,
        "learning_rate": 3e-4,
        "optim": "adamw_torch",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def eager(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(0)
    return AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32, attn_implementation="eager")


def usual(way: str, base: Path, rows: Rows, length: int, folder: Path) -> Any:
    """Hugging Face's Trainer, padded to the full length, or to the longest of batches of similar lengths."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    def pad(samples: Rows) -> dict[str, torch.Tensor]:
        longest = length if way == "usual" else max(len(each["input_ids"]) for each in samples)

        def column(fill: int, values: Any) -> torch.Tensor:
            return torch.tensor([[*value, *[fill] * (longest - len(value))] for value in values])

        return {
            "input_ids": column(0, [each["input_ids"] for each in samples]),
            "attention_mask": column(0, [[1] * len(each["input_ids"]) for each in samples]),
            "labels": column(-100, [each["labels"] for each in samples]),
        }

    batch = batch_of(way, length)
    arguments = TrainingArguments(
        **common(folder, -(-len(rows) // batch), batch),
        group_by_length=way == "grouped",
        gradient_checkpointing=way == "usual",
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    tuned = get_peft_model(eager(base), LoraConfig(**LORA))
    return Trainer(model=tuned, args=arguments, data_collator=pad, train_dataset=Dataset.from_list(rows))


def trl(way: str, base: Path, rows: Rows, length: int, folder: Path) -> Any:
    """TRL's SFTTrainer with its fastest settings on torch 2.0.1: packing, eager attention, no checkpointing."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    steps = -(-sum(len(row["input_ids"]) for row in rows) // length)
    arguments = SFTConfig(
        **common(folder, steps, 1), packing=True, max_length=length, gradient_checkpointing=False, padding_free=False
    )
    table = Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
    return SFTTrainer(
        model=eager(base),
        args=arguments,
        train_dataset=table,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        processing_class=AutoTokenizer.from_pretrained(base),
    )


def llamafactory(way: str, base: Path, rows: Rows, length: int, folder: Path) -> Any:
    """LLaMA-Factory's own packing, loading, collator and trainer, as its `run_sft` joins them, without checkpointing.

    Its templates are left out, so that it gets the other ways' tokens and labels. Packs have one size, and the 4-D mask
    of a pack goes to eager attention (SDPA needs torch 2.1.1). LLaMA-Factory cuts a conversation that is longer than a
    pack; none is, here. The loss is the mean over all trained tokens of the step, as in this recipe.
    """
    from datasets import Dataset
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_template_and_fix_tokenizer
    from llamafactory.data.processor import PackedSupervisedDatasetProcessor
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    class Encoded(PackedSupervisedDatasetProcessor):
        def _encode_data_example(self, prompt: Any, response: Any, **others: Any) -> tuple[list[int], list[int]]:
            return prompt[0], response[0]

    width, packs = neat_packs([len(row["input_ids"]) for row in rows])
    layers = ",".join(LORA["target_modules"])
    lora = {"lora_rank": LORA["r"], "lora_alpha": LORA["lora_alpha"], "lora_dropout": 0.0, "lora_target": layers}
    data = {"dataset": "rows", "template": "vicuna", "cutoff_len": width, "neat_packing": True}
    settings = common(folder, packs, 1) | lora | data
    settings |= {"model_name_or_path": str(base), "do_train": True, "disable_gradient_checkpointing": True}
    model_args, data_args, arguments, lora_args, _ = get_train_args(settings)
    parts = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(parts["tokenizer"], data_args)
    examples = {"_prompt": [[row["input_ids"]] for row in rows], "_response": [[row["labels"]] for row in rows]}
    examples |= {name: [None] * len(rows) for name in ("_system", "_tools", "_images", "_videos", "_audios")}
    packed_rows = Encoded(template=template, data_args=data_args, **parts).preprocess_dataset(examples)
    assert len(packed_rows["input_ids"]) == packs, "a turn is one optimizer step over all packs"
    tuned = load_model(parts["tokenizer"], model_args, lora_args, is_trainable=True)
    collator = SFTDataCollatorWith4DAttentionMask(
        template=template,
        model=tuned,
        pad_to_multiple_of=8,
        block_diag_attn=model_args.block_diag_attn,
        attn_implementation=tuned.config._attn_implementation,
        compute_dtype=model_args.compute_dtype,
        **parts,
    )
    return CustomSeq2SeqTrainer(
        model=tuned,
        args=arguments,
        finetuning_args=lora_args,
        data_collator=collator,
        train_dataset=Dataset.from_dict(packed_rows),
        **parts,
    )


def neat_packs(sizes: list[int]) -> tuple[int, int]:
    """(tokens of LLaMA-Factory's packs, their number): each takes the longest conversation that fits, until none does.

    The packs are the smallest for these conversations: it pads each to more than its longest, to a multiple of 8, so
    that larger ones would be emptier, with larger masks. For 512 tokens, packs of 1,024 were slower.
    """
    width = max(sizes) // 8 * 8 + 8
    room: list[int] = []
    for size in sorted(sizes, reverse=True):
        fits = [number for number, left in enumerate(room) if left >= size]
        if fits:
            room[fits[0]] -= size
        else:
            room.append(width - 1 - size)
    return width, len(room)


def batch_of(way: str, length: int) -> int:
    """Conversations per batch: for long ones, a batch of one is best, since it pads nothing."""
    return 2 if way == "grouped" and length <= 512 else 1
