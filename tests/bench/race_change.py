"""Train with one change that no setting offers: `python tests/bench/race_change.py CHANGE --config ...` (see race.py).

A change replaces one function of the recipe or of a library before recipe.train begins. One that wins the race becomes
a setting; the others stay here.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """A starts as the directions in which its inputs vary most, over the first packs (EVA, arXiv:2410.07170)."""
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
    """Set every A, [rank, in], to the leading eigenvectors of its inputs' second moments, [in, in]."""
    from recipe.training.dataset import separate

    downs = {name: module for name, module in model.named_modules() if name.endswith(".lora_A.default")}
    model.eval()  # no dropout
    with torch.no_grad(), second_moments(downs) as moments:
        for number in range(min(EVA_PACKS, len(data))):
            for sample in separate(data[number]):
                model(input_ids=torch.tensor([sample["input_ids"]]))
    for name, module in downs.items():
        _, vectors = torch.linalg.eigh(moments[name])  # in ascending order
        module.weight.data.copy_(vectors[:, -module.weight.shape[0] :].T.flip(0))
    model.train()


@contextmanager
def second_moments(modules: dict[str, torch.nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Name -> sum of x xT over all tokens that the module has seen so far, fp32 [in, in]."""
    moments: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
            moments[name] = moments.get(name, 0) + x.T @ x

        return add

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


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
