"""The best validation of a run: whose adapter is kept, and when to stop early. Part of every checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Selection:
    """The validation with the lowest loss so far."""

    keep_best: bool = False  # train.keep = "best"
    patience: int = 0  # validations without a lower loss before the run stops; 0: it never does
    loss: float = math.inf
    step: int = 0
    waited: int = 0  # validations since the best one
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # of its adapter, on the CPU; with keep_best only

    @property
    def exhausted(self) -> bool:
        """Whether the run is to stop."""
        return 0 < self.patience <= self.waited

    def update(self, step: int, loss: float, model: nn.Module) -> None:
        """Count a validation; the first of several equal losses stays the best."""
        if loss >= self.loss:
            self.waited += 1
            return
        self.loss, self.step, self.waited = loss, step, 0
        if self.keep_best:
            self.weights = {name: p.detach().cpu().clone() for name, p in trained_parameters(model).items()}

    def restore(self, model: nn.Module) -> None:
        """Put the best adapter into the model."""
        for name, parameter in trained_parameters(model).items():
            parameter.data.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("loss", "step", "waited", "weights")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the adapter by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
