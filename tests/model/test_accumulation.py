"""The decision about sums: made once on the run's card, said, kept, and taken again by a resumed run."""

import json

import pytest
import torch
from torch import nn

from recipe.core.errors import RecipeError
from recipe.model import accumulation
from recipe.pascal import constants, probe
from recipe.pascal.int8 import Int8Linear
from recipe.pascal.probe import Race

CPU = torch.device("cpu")


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(Int8Linear(torch.randn(6, 4)), Int8Linear(torch.randn(4, 6)), nn.Linear(4, 4))


@pytest.fixture
def card(monkeypatch) -> list:
    """A card on which fp16 sums are faster from 4 to 6 alone; the fixture is what was asked."""
    asked = []

    def answer(where, shapes, tokens):
        asked.append((sorted(shapes), tokens))
        return [Race(4, 6, 3e-3, 1.0, 2.0), Race(6, 4, 3e-3, 2.5, 2.0)]

    monkeypatch.setattr(probe, "gemm", answer)
    return asked


def ways(model: nn.Module) -> list[bool]:
    return [layer.matmul is not torch.matmul for layer in model if isinstance(layer, Int8Linear)]


def test_the_faster_way_is_taken_and_said(model, card, tmp_path, capsys):
    accumulation.choose(model, tmp_path, 256, CPU)
    assert ways(model) == [True, False] and card == [([(4, 6), (6, 4)], 256)]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "4 to 6: fp16 sums 1.00 ms, fp32 sums 2.00 ms, error 3.0e-03: fp16 is taken",
        "6 to 4: fp16 sums 2.50 ms, fp32 sums 2.00 ms, error 3.0e-03: fp32 is kept",
    ]


def test_a_resumed_run_does_as_it_began_on_whatever_card(model, card, tmp_path, monkeypatch, capsys):
    accumulation.choose(model, tmp_path, 256, CPU)
    began = constants.SPLIT_K
    monkeypatch.setattr(constants, "SPLIT_K", 7)
    again = nn.Sequential(Int8Linear(torch.randn(6, 4)), Int8Linear(torch.randn(4, 6)))
    accumulation.choose(again, tmp_path, 256, CPU)
    assert ways(again) == [True, False] and len(card) == 1
    assert again[0].matmul.keywords == {"chunk": began}
    assert f"sums as {tmp_path / accumulation.DECISION} says" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("cuBLAS gave status 15\nhere"), torch.cuda.OutOfMemoryError("full")])
def test_a_card_that_cannot_keeps_fp32(model, tmp_path, monkeypatch, capsys, error):
    def refuse(where, shapes, tokens):
        raise error

    monkeypatch.setattr(probe, "gemm", refuse)
    accumulation.choose(model, tmp_path, 256, CPU)
    assert ways(model) == [False, False]
    said = capsys.readouterr().err
    assert "fp32 is kept" in said and said.count("\n") == 1
    accumulation.choose(model, tmp_path, 256, CPU)  # and a resumed run reads that


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"chunk": 512, "layers": [{}]}', '{"chunk": 512, "layers": []}', '{"chunk": null, "layers": []}'],
)
def test_a_decision_that_is_none_is_refused(model, tmp_path, text):
    (tmp_path / accumulation.DECISION).write_text(text)
    with pytest.raises(RecipeError, match=r"matmul\.json .*: delete it to try the card again"):
        accumulation.choose(model, tmp_path, 256, CPU)


def test_a_decision_names_its_numbers(model, card, tmp_path):
    accumulation.choose(model, tmp_path, 256, CPU)
    decision = json.loads((tmp_path / accumulation.DECISION).read_text())
    first = {"fan_in": 4, "fan_out": 6, "error": 3e-3, "fp16_ms": 1.0, "fp32_ms": 2.0, "fp16": True}
    assert decision["layers"][0] == first and decision["tokens"] == 256 and decision["chunk"] == constants.SPLIT_K
    assert [path.name for path in tmp_path.iterdir()] == [accumulation.DECISION]
