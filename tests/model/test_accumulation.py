"""The accumulation dtypes: benchmarked once on the run's GPU, reported, stored, and used again by a resumed run."""

import pytest
import torch
from torch import nn

from recipe.core.errors import RecipeError
from recipe.model import accumulation
from recipe.pascal import constants, probe
from recipe.pascal.gemm import accumulate_in_fp16, int8_shapes
from recipe.pascal.int8 import Int8Linear
from recipe.pascal.probe import GemmBenchmark

CPU = torch.device("cpu")
SHAPES = {(4, 6), (6, 4)}


@pytest.fixture
def benchmarks(monkeypatch) -> list:
    """A GPU on which fp16 accumulation is faster from 4 to 6 only; the fixture is the list of calls."""
    calls = []

    def answer(device, shapes, tokens):
        calls.append((sorted(shapes), tokens))
        return [GemmBenchmark(4, 6, 3e-3, 1.0, 2.0), GemmBenchmark(6, 4, 3e-3, 2.5, 2.0)]

    monkeypatch.setattr(probe, "benchmark_gemm", answer)
    return calls


def test_the_faster_dtype_is_chosen_and_reported(benchmarks, tmp_path, capsys):
    choice = accumulation.choose(tmp_path / "matmul.json", SHAPES, 256, CPU)
    assert choice == accumulation.Choice({(4, 6)}, constants.SPLIT_K) and benchmarks == [([(4, 6), (6, 4)], 256)]
    assert capsys.readouterr().err.splitlines() == [
        "4 to 6: fp16 accumulation 1.00 ms, fp32 2.00 ms, error 3.0e-03: using fp16",
        "6 to 4: fp16 accumulation 2.50 ms, fp32 2.00 ms, error 3.0e-03: using fp32",
    ]


def test_a_gpu_that_computes_in_fp32_accumulates_in_fp32(benchmarks, tmp_path, capsys, monkeypatch):
    """Also where a P100 began the run and left its choice."""
    accumulation.choose(tmp_path / "matmul.json", SHAPES, 256, CPU)
    capsys.readouterr()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    choice = accumulation.choose(tmp_path / "matmul.json", SHAPES, 256, torch.device("cuda"))
    assert not choice.shapes and len(benchmarks) == 1
    assert "computes in fp32" in capsys.readouterr().err


def test_a_choice_changes_only_its_layers():
    model = nn.Sequential(Int8Linear(torch.randn(6, 4)), Int8Linear(torch.randn(4, 6)), nn.Linear(4, 4))
    assert int8_shapes(model) == SHAPES
    accumulate_in_fp16(model, {(4, 6)}, 7)
    assert model[0].matmul.keywords == {"chunk": 7} and model[1].matmul is torch.matmul


def test_a_resumed_run_keeps_its_choice_on_any_gpu(benchmarks, tmp_path, monkeypatch, capsys):
    first = accumulation.choose(tmp_path / "matmul.json", SHAPES, 256, CPU)
    monkeypatch.setattr(constants, "SPLIT_K", 7)
    monkeypatch.setattr(probe, "benchmark_gemm", lambda *args: pytest.fail("benchmarked again"))
    assert accumulation.choose(tmp_path / "matmul.json", SHAPES, 256, CPU) == first
    assert f"stored in {tmp_path / 'matmul.json'}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["matmul.json"]


@pytest.mark.parametrize("error", [RuntimeError("cuBLAS gave status 15\nhere"), torch.cuda.OutOfMemoryError("full")])
def test_a_gpu_that_cannot_keeps_fp32(tmp_path, monkeypatch, capsys, error):
    def refuse(device, shapes, tokens):
        raise error

    monkeypatch.setattr(probe, "benchmark_gemm", refuse)
    assert accumulation.choose(tmp_path / "matmul.json", SHAPES, 256, CPU).shapes == set()
    message = capsys.readouterr().err
    assert "using fp32" in message and message.count("\n") == 1
    assert accumulation.choose(tmp_path / "matmul.json", SHAPES, 256, CPU).shapes == set()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"chunk": 512, "layers": [{}]}', '{"chunk": 512, "layers": []}', '{"chunk": null, "layers": []}'],
)
def test_a_file_without_a_choice_is_refused(tmp_path, text):
    (tmp_path / "matmul.json").write_text(text)
    with pytest.raises(RecipeError, match=r"matmul\.json .*: delete it to benchmark the GPU again"):
        accumulation.choose(tmp_path / "matmul.json", SHAPES, 256, CPU)
