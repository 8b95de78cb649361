"""The plan: what fits, what would fit, how long it takes, and what it says where something is unknown."""

import dataclasses
import json
from pathlib import Path

import pytest

from recipe import plan
from recipe.core import config as configs
from recipe.core.cli import entry
from recipe.core.errors import RecipeError, UsageError
from recipe.planning import sizing

CONFIGS = Path(plan.__file__).parent / "configs"
SEVEN, THIRTEEN = CONFIGS / "vicuna-7b-p100.toml", CONFIGS / "vicuna-13b-p100.toml"


def planned(capsys, *flags: str) -> tuple[int, dict, str]:
    """(exit code, --json, stderr) of one call."""
    code = entry(lambda: plan.main([*flags, "--json"]))
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


@pytest.mark.parametrize("path", [SEVEN, THIRTEEN], ids=lambda path: path.stem)
def test_the_shipped_configs_fit_with_margin(path, capsys):
    code, result, _ = planned(capsys, "--config", str(path))
    memory = result["memory"]
    assert code == 0 and memory["fits"]
    assert memory["left"] >= memory["margin"] >= 1_000
    assert memory["weights"] < 7_200
    assert memory["fewest_recomputed"] == memory["recomputed"] < memory["layers"]


def test_a_config_that_cannot_fit_says_by_how_much_and_what_to_change(capsys):
    code, result, err = planned(capsys, "--config", str(THIRTEEN), "--set", "base.precision=fp16")
    memory = result["memory"]
    over = memory["total"] - (memory["gpu"] - memory["margin"])
    assert code == 3 and not memory["fits"] and over > 8_000
    assert f"{over:,} too many" in err and 'set base.precision = "int8"' in err and err.count("\n") == 1


def test_flops_are_those_of_the_facts():
    """6N with every layer recomputed, 4N with none; N are the layers' 6.5 of a 7B's 6.7 billion weights."""
    whole = plan.run(configs.load(SEVEN, {"train.recompute": -1})).time.flop_per_token
    none = plan.run(configs.load(SEVEN, {"train.recompute": 0})).time.flop_per_token
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert whole["forward"] + whole["recompute"] + whole["backward"] == 6 * weights
    assert none["recompute"] == 0 and none["forward"] + none["backward"] == 4 * weights


def test_hours_of_a_run_computed_by_hand():
    """Per token, with all 32 layers recomputed: 6 x 6,476,005,376 weights, attention 2 x 2048 x 4096 x 32 x 4 =
    2.147e9, lm_head 4 x 32000 x 4096 = 0.524e9; 41.528e9 FLOP in all. 50 million tokens at 7.9 and 8.4 TFLOP/s.
    """
    planned = plan.run(configs.load(SEVEN, {"train.recompute": -1}), tokens=50_000_000)
    assert plan.as_json(planned)["time"]["hours"] == [73.0, 68.7]
    assert planned.time.steps == 1526  # 50 million over 2,048 x 16, rounded up


def test_fp16_accumulation_shows_its_upper_bound():
    """Less than the ratio of the two rates: lm_head and attention accumulate in fp32."""
    assert "fp16 accumulation" not in plan.text(plan.run(configs.load(SEVEN)))
    found = plan.run(configs.load(SEVEN, {"train.matmul_accumulation": "fp16"}))
    usual, fast = found.time.tokens_per_second[1], found.time.fp16_tokens_per_second
    assert usual < fast < usual * 18.7 / 8.4
    assert f"at most {fast:.0f} tokens/s, not yet measured" in plan.text(found)


def test_the_prepared_corpus_is_counted(tiny_run):
    from recipe.core.manifest import read_manifest

    result = plan.as_json(plan.run(tiny_run))
    counted = read_manifest(Path(tiny_run.corpus.path))["results"]
    assert result["time"]["tokens"] == counted["tokens"]["train"]
    assert result["time"]["samples"] == counted["samples"]["train"]
    assert result["shape"]["hidden_size"] == 48 and result["shape"]["num_key_value_heads"] == 2


def test_text_shows_the_arithmetic_and_what_it_is(tiny_run, capsys):
    assert entry(lambda: plan.main(["--config", str(SEVEN), "--tokens", "1000000"])) == 0
    out = capsys.readouterr().out
    for part in (
        "weights",
        "CUDA context",
        "4,194,304 parameters",
        "2 x 6.48 billion weights",
        "backward",
        "GFLOP per token",
        "7.9 to 8.4 TFLOP/s",
        "hours",
    ):
        assert part in out
    assert "not yet measured on a P100" in out and "not converted yet" in out
    assert entry(lambda: plan.main(["--config", str(SEVEN)])) == 0
    assert "tokens unknown" in capsys.readouterr().out


def test_a_size_wins_over_the_name_and_an_unknown_name_asks_for_one(capsys):
    unknown = ["--config", str(SEVEN), "--set", "base.path=weights/mine"]
    code, _, err = planned(capsys, *unknown)
    assert code == 2 and "pass --shape 7b or 13b" in err
    code, result, _ = planned(capsys, *unknown, "--shape", "13b", "--set", "base.precision=nf4")
    assert code == 0 and result["shape"]["hidden_size"] == 5120


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train.recompute": 33}, "expected -1 .all. to 32"),
        ({"lora.target_modules": ["query"]}, "found 'query'"),
        ({"base.path": ""}, "base.path is empty"),
        ({"corpus.max_length": 4096}, "expected at least corpus.max_length"),
        ({"train.gradient_accumulation_steps": 0}, "expected at least 1 and at most 100,000, found 0"),
        ({"lora.rank": 0}, "lora.rank .* expected at least 1"),
    ],
)
def test_a_config_that_cannot_be_right(change, said):
    with pytest.raises(UsageError, match=said):
        plan.run(configs.load(SEVEN, change))


def test_a_damaged_config_json_or_manifest_is_one_sentence(tmp_path, tiny_run):
    (tmp_path / "config.json").write_text('{"hidden_size": 1}')
    broken = dataclasses.replace(tiny_run, base=dataclasses.replace(tiny_run.base, path=str(tmp_path)))
    with pytest.raises(RecipeError, match="is not the config of a LLaMA"):
        sizing.read_shape(broken, None)
    manifest = {"stage": "corpus", "inputs": {}, "outputs": {}, "config": {}, "results": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    broken = dataclasses.replace(tiny_run, corpus=dataclasses.replace(tiny_run.corpus, path=str(tmp_path)))
    with pytest.raises(RecipeError, match="has no token counts"):
        plan.run(broken)


@pytest.mark.parametrize("count", ["0", "-1", "many", "9" * 5000, "\u00b2"])
def test_a_number_of_tokens_that_is_none(count, capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(["--config", str(SEVEN), "--tokens", count])
    assert end.value.code == 2 and "whole number above 0" in capsys.readouterr().err
