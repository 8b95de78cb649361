"""The plan: what fits, what would fit, how long it takes, and what it says where something is unknown."""

import dataclasses
import json
from pathlib import Path

import pytest

from recipe import plan
from recipe.core import config as configs
from recipe.core.cli import entry
from recipe.core.errors import RecipeError, UsageError
from recipe.planning import cards, sizing

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
        "7.9 to 8.4 TFLOP/s of a P100's matmul",
        "hours",
    ):
        assert part in out
    assert "not yet measured on a P100" in out and "not converted yet" in out
    assert entry(lambda: plan.main(["--config", str(SEVEN)])) == 0
    assert "tokens unknown" in capsys.readouterr().out


def test_a_size_wins_over_the_name_and_an_unknown_name_asks_for_one(capsys):
    unknown = ["--config", str(SEVEN), "--set", "base.path=weights/mine"]
    code, _, err = planned(capsys, *unknown)
    assert code == 2 and "pass --shape 7b, 13b or 30b" in err
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


# --- Several GPUs, money, other cards ---------------------------------------------------------------------------------


def test_eight_gpus_by_hand(capsys):
    """q and v of rank 8: 4,194,304 fp32 gradients are 16.8 MB; a ring of 8 moves 2 x 7/8 of it: 29.4 MB, in 0.251 s
    over 0.117 GB/s. 16 packs a step are 2 for each GPU: an eighth of the seconds.
    """
    flags = ["--config", str(SEVEN), "--tokens", "100000000"]
    _, one, _ = planned(capsys, *flags)
    code, result, _ = planned(capsys, *flags, "--gpus", "8", "--price", "0.5")
    parallel = result["parallel"]
    assert code == 0 and parallel["gpus"] == 8 and parallel["packs"] == 2
    assert parallel["all_reduce"]["1 Gbit/s Ethernet"] == pytest.approx(2 * 7 / 8 * 4 * 4_194_304 / 0.117e9)
    alone = [32_768 / speed for speed in one["time"]["tokens_per_second"]]
    assert parallel["step_seconds"] == pytest.approx([seconds / 8 for seconds in alone], rel=0.01)
    hours = [3052 * (seconds / 8 + 0.251) / 3600 for seconds in alone]
    assert result["time"]["hours"] == pytest.approx(hours, rel=0.01)
    assert result["money"] == pytest.approx([8 * 0.5 * value for value in hours], rel=0.01)
    assert result["time"]["steps"] == one["time"]["steps"], "the global batch is the config's"


@pytest.mark.parametrize("gpus", ["3", "32"])
def test_gpus_that_cannot_share_the_packs_of_a_step_are_refused(capsys, gpus):
    code, _, err = planned(capsys, "--config", str(SEVEN), "--gpus", gpus)
    assert code == 2 and "a divisor of train.gradient_accumulation_steps = 16" in err


@pytest.mark.parametrize("name", sorted(cards.CARDS))
def test_every_card_has_a_source_and_a_plan(name, capsys):
    card = cards.CARDS[name]
    assert card.source and 0 < card.tflops[0] < card.tflops[1]
    code, result, _ = planned(capsys, "--config", str(SEVEN), "--gpu", name, "--tokens", "1000000")
    assert code == 0 and result["memory"]["gpu"] == card.mib
    assert result["card"]["note"] or name == "p100"
    assert card.short in result["note"]


def test_what_changes_on_other_cards(capsys):
    """The P40 keeps activations in fp32: twice the bytes, so more layers recompute, though it has 24 GB."""
    memory = {name: planned(capsys, "--config", str(SEVEN), "--gpu", name)[1]["memory"] for name in cards.CARDS}
    assert memory["p40"]["kept"] / (32 - memory["p40"]["recomputed"]) > 1.5 * memory["a100"]["kept"] / 32
    assert memory["p100-12gb"]["recomputed"] > memory["p100"]["recomputed"] == memory["a100"]["recomputed"] == 0
    code, result, err = planned(capsys, "--config", str(THIRTEEN), "--gpu", "p100-12gb", "--set", "base.precision=int8")
    assert code == 3 and result["advice"] and "of the GPU's 12,198" in err


def test_a_base_over_two_gpus(capsys):
    """13B in int8 recomputes nothing on two; 33B in NF4 fits only two."""
    arguments = ["--config", str(THIRTEEN), "--tokens", "1000000", "--price", "1"]
    _, one, _ = planned(capsys, *arguments, "--set", "base.precision=int8")
    code, two, _ = planned(capsys, *arguments, "--set", "base.precision=int8", "--set", "base.split=2")
    assert code == 0 and one["memory"]["recomputed"] > 30 and two["memory"]["recomputed"] == 0
    first, second = two["memory"]["by_gpu"]
    assert first["layers"] == [0, 19] and second["layers"] == [20, 39]
    assert two["memory"]["total"] == first["total"] > second["total"]
    assert two["money"] == pytest.approx([2 * hours for hours in two["time"]["hours"]], rel=0.05)
    assert planned(capsys, *arguments, "--shape", "30b")[0] == 3
    assert planned(capsys, *arguments, "--shape", "30b", "--set", "base.split=2")[0] == 0
    assert entry(lambda: plan.main([*arguments, "--set", "base.split=2"])) == 0
    out = capsys.readouterr().out
    assert "2 GPUs share the base" in out and "layers 0 to 19 on GPU 0" in out and "not yet measured on GPUs" in out


@pytest.mark.parametrize(
    ("split", "gpus", "said"),
    [(2, 2, "expected one of the two above 1"), (41, 1, "at most 40, the layers of the base")],
)
def test_a_split_that_cannot_be_is_refused(split, gpus, said, capsys):
    code, _, err = planned(capsys, "--config", str(THIRTEEN), "--gpus", str(gpus), "--set", f"base.split={split}")
    assert code == 2 and said in err


def test_disk_and_download_of_seven_billion_weights(capsys):
    """13.48 GB in fp16, as published; half of it and the rest in int8."""
    _, result, _ = planned(capsys, "--config", str(SEVEN))
    assert result["download"] == result["disk"]["raw weights"] == pytest.approx(13.48e9, rel=0.001)
    assert result["disk"]["int8 copy"] == pytest.approx(7.0e9, rel=0.01)
    assert entry(lambda: plan.main(["--config", str(SEVEN)])) == 0
    assert "18 minutes at 100 Mbit/s" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["0", "-1", "free", "1e400", "nan", "٣"])
def test_a_price_that_is_none(value, capsys):
    with pytest.raises(SystemExit) as end:
        plan.main(["--config", str(SEVEN), f"--price={value}"])
    assert end.value.code == 2 and "amount above 0" in capsys.readouterr().err
