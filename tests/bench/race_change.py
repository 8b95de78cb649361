"""Train with one change that no setting offers: `python tests/bench/race_change.py CHANGE --config ...` (see race.py).

A change replaces one function of the recipe or of a library before recipe.train begins. One that wins the race becomes
a setting; the others stay here.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from peft import PeftModel

    from recipe.training.dataset import PackedDataset

B_RATE = 16  # of B to that of A: the ratio that Hayou et al. recommend (LoRA+, arXiv:2402.12354)
EVA_PACKS = 8


def lora_plus() -> None:
    """B has a learning rate 16 times that of A, which has the run's."""
    from recipe.training.selection import trained_parameters
    from recipe.training.trainer import LoraTrainer

    def create_optimizer(self: LoraTrainer) -> torch.optim.Optimizer:
        named = trained_parameters(self.model)
        ups = [parameter for name, parameter in named.items() if ".lora_B." in name]
        downs = [parameter for name, parameter in named.items() if ".lora_A." in name]
        rate = self.args.learning_rate
        groups = [{"params": downs, "lr": rate}, {"params": ups, "lr": rate * B_RATE}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=self.args.weight_decay)
        return self.optimizer

    LoraTrainer.create_optimizer = create_optimizer  # type: ignore[method-assign]


def eva() -> None:
    """A starts as the principal directions of its inputs at trained tokens, over the first packs.

    EVA (arXiv:2410.07170) without its redistribution of ranks between layers.
    """
    from recipe.training import setup

    kept: list[PackedDataset] = []
    load_data, add_adapter = setup.load_data, setup.add_adapter

    def load_and_keep(*args: Any) -> "tuple[PackedDataset, PackedDataset]":
        found = load_data(*args)
        kept.append(found[0])
        return found

    def add_from_inputs(*args: Any) -> "PeftModel":
        model = add_adapter(*args)
        start_from_inputs(model, kept[-1])
        return model

    setup.load_data, setup.add_adapter = load_and_keep, add_from_inputs


def start_from_inputs(model: "PeftModel", data: "PackedDataset") -> None:
    """Set every A, [rank, in], to the leading eigenvectors of the covariance of its inputs, [in, in]."""
    from recipe.model.likelihood import IGNORED
    from recipe.training.dataset import separate

    downs = {name: module for name, module in model.named_modules() if name.endswith(".lora_A.default")}
    inputs = {name: Moments() for name in downs}
    handles = [module.register_forward_pre_hook(inputs[name].add) for name, module in downs.items()]
    model.eval()  # no dropout
    with torch.no_grad():
        for number in range(min(EVA_PACKS, len(data))):
            for sample in separate(data[number]):
                trained = torch.tensor(sample["labels"]) != IGNORED
                for each in inputs.values():
                    each.rows = trained
                model(input_ids=torch.tensor([sample["input_ids"]]))
    model.train()
    for handle in handles:
        handle.remove()
    for name, module in downs.items():
        _, vectors = torch.linalg.eigh(inputs[name].covariance())  # in ascending order
        module.weight.data.copy_(vectors[:, -module.weight.shape[0] :].T.flip(0))


class Moments:
    """Count, sum [in] and sum of x xT [in, in] of a module's inputs at chosen tokens (`rows`, bool [tokens])."""

    def __init__(self) -> None:
        self.rows = torch.zeros(0, dtype=torch.bool)
        self.count, self.total, self.square = 0, torch.zeros(()), torch.zeros(())

    def add(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0][0, self.rows].float()
        self.count, self.total, self.square = self.count + len(x), self.total + x.sum(0), self.square + x.T @ x

    def covariance(self) -> torch.Tensor:
        mean = self.total / self.count
        return self.square / self.count - torch.outer(mean, mean)


def upper_half() -> None:
    """Adapters in the upper half of the layers: the backward pass ends there."""
    import peft
    from transformers import LlamaForCausalLM

    wrap = peft.get_peft_model

    def get_peft_model(model: LlamaForCausalLM, settings: peft.LoraConfig) -> "PeftModel":
        layers = model.config.num_hidden_layers
        settings.layers_to_transform = list(range(layers // 2, layers))
        return wrap(model, settings)

    peft.get_peft_model = get_peft_model


def schedule(kind: str) -> Callable[[], None]:
    """Another decay of the learning rate, by transformers' name of it."""

    def change() -> None:
        from recipe.training import arguments

        make = arguments.TrainingArguments
        arguments.TrainingArguments = lambda **fields: make(**fields | {"lr_scheduler_type": kind})

    return change


def cooldown() -> None:
    """The rate stays constant after the warm-up and falls on a line in the last fifth of the steps.

    Hägele et al. 2024 (arXiv:2405.18392) find that a cosine is no better when the two end at the same step.
    """
    from transformers.trainer_utils import SchedulerType

    from recipe.training.trainer import LoraTrainer

    make = LoraTrainer.create_scheduler

    def create_scheduler(self: LoraTrainer, num_training_steps: int, *args: Any, **named: Any) -> Any:
        self.args.lr_scheduler_type = SchedulerType.WARMUP_STABLE_DECAY
        self.args.lr_scheduler_kwargs = {"num_decay_steps": round(num_training_steps / 5), "decay_type": "linear"}
        return make(self, num_training_steps, *args, **named)

    LoraTrainer.create_scheduler = create_scheduler  # type: ignore[method-assign]


def short_first() -> None:
    """The packs of the shortest conversations first, in place of a random order."""
    from recipe.training import dataset

    make = dataset.schedule

    def sort(lengths: Sequence[int], *args: Any) -> list[list[int]]:
        return sorted(make(lengths, *args), key=lambda pack: sum(lengths[row] for row in pack) / len(pack))

    dataset.schedule = sort


CHANGES = {
    "lora-plus": lora_plus,
    "eva": eva,
    "upper-half": upper_half,
    "constant": schedule("constant_with_warmup"),
    "linear": schedule("linear"),
    "cooldown": cooldown,
    "short-first": short_first,
}


def main() -> int:
    name, *argv = sys.argv[1:]
    CHANGES[name]()
    from recipe import train

    return train.main(argv)


if __name__ == "__main__":
    from recipe.core.cli import entry

    sys.exit(entry(main))
