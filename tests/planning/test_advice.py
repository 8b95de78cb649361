"""Advice for a config that does not fit: it suffices, is minimal, and uses fields that the config has."""

import dataclasses

import pytest

from recipe import plan
from recipe.core import config as configs
from recipe.core.config import Config
from recipe.planning import advice, hardware, sizing

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def bad(size: str, changes: dict) -> tuple[Config, object]:
    config = configs.load(None, {"base.path": f"weights/llama-{size}", **changes})
    shape, _ = sizing.read_shape(config, None)
    assert not advice.fits(config, shape, {})
    return config, shape


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        (
            "7b",
            {"train.recompute": 0, "train.micro_batch_tokens": 3072, "corpus.max_length": 3072},
            'set train.recompute = "auto", or base.precision = "nf4"',
        ),
        ("7b", {"base.precision": "fp32"}, 'set base.precision = "fp16"'),
        (
            "13b",
            {"train.matmul_accumulation": "fp16", "train.micro_batch_tokens": 4096, "corpus.max_length": 4096},
            'set base.precision = "nf4" and train.matmul_accumulation = "fp32"',
        ),
        ("13b", {"base.precision": "fp16"}, 'set base.precision = "int8"'),
        ("7b", {"train.micro_batch_tokens": 65536}, "set train.micro_batch_tokens = 16384"),
        ("7b", {"lora.rank": 512, "lora.target_modules": ALL}, "set lora.rank = 128"),
        (
            "7b",
            {"train.micro_batch_tokens": 32768, "train.recompute": 0, "corpus.max_length": 3072},
            'set train.recompute = "auto" and train.micro_batch_tokens = 16384',
        ),
        (
            "7b",
            {"train.micro_batch_tokens": 65536, "corpus.max_length": 65536},
            "set corpus.max_length = 16384 and train.micro_batch_tokens = 16384 (and run recipe.corpus again)",
        ),
        (
            "13b",
            {"base.precision": "fp32", "train.micro_batch_tokens": 32768},
            'set train.micro_batch_tokens = 2048 and base.precision = "int8"',
        ),
    ],
)
def test_the_mildest_change_that_is_enough(size, changes, expected):
    assert advice.advise(*bad(size, changes)) == expected


@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("recompute", [0, -1, "auto"])
@pytest.mark.parametrize("rank", [8, 1024])
@pytest.mark.parametrize(("budget", "length"), [(2048, 1024), (32768, 2048), (32768, 32768)])
def test_what_it_advises_fits_and_is_a_config(size, precision, recompute, rank, budget, length):
    """The sentence is read as a person would: each alternative is set, all of its fields."""
    changes = {"base.precision": precision, "train.recompute": recompute, "lora.rank": rank}
    changes |= {"train.micro_batch_tokens": budget, "corpus.max_length": length, "base.path": f"weights/llama-{size}"}
    config = configs.load(None, changes)
    result = plan.run(config)
    if result.memory.fits:
        assert result.advice == ""
        return
    advised = result.advice.removeprefix("set ").removesuffix(" (and run recipe.corpus again)")
    for choice in advised.split(", or "):
        fields = configs.parse_set(choice.split(" and "))
        assert fields and all(configs.load(None, {**changes, key: value}) != config for key, value in fields.items())
        assert plan.run(configs.load(None, {**changes, **fields})).memory.fits, choice


@pytest.mark.parametrize(("limit", "left"), [("4294967296", 4294967296 - 3000 + 1000), ("1000", 0), ("max", None)])
def test_free_memory_in_a_container_is_what_is_left_of_its_limit(monkeypatch, tmp_path, limit, left):
    monkeypatch.setattr(sizing, "CGROUP", tmp_path)
    whole = sizing.available_memory()
    assert whole > 4294967296
    files = {"memory.max": limit, "memory.current": "3000", "memory.stat": "anon 2000\ninactive_file 1000"}
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    found = sizing.available_memory()
    assert found == left if left is not None else found > 4294967296


def test_a_base_that_never_fits_gets_no_setting_advised():
    """200 layers of a 13B: the weights alone exceed the budget in 4 bits."""
    config = configs.load(None, {"base.path": "weights/llama-13b"})
    shape = dataclasses.replace(sizing.read_shape(config)[0], num_hidden_layers=200)
    smallest = advice.apply_change(config, {"base.precision": "nf4"})
    assert sizing.plan_shape(smallest, shape).estimate.weights > hardware.P100_BUDGET
    assert advice.advise(config, shape) == "no setting makes it fit: use a smaller base"
