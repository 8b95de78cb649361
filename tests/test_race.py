"""The race of ways of training: its arithmetic, and that its table is that of the committed curves."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from recipe import train
from recipe.core import config as configs
from recipe.planning.whole import make_plan
from recipe.training import arguments, dataset, setup
from recipe.training.trainer import LoraTrainer

ROOT = Path(__file__).parents[1]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


race, race_change, race_report = map(load_script, ("race", "race_change", "race_report"))

CURVE = [(1000, 3.0), (2000, 2.0), (3000, 1.5)]


def load(settings):
    return configs.load(race.CONFIG, configs.parse_set([f"{key}={value}" for key, value in settings.items()]))


@pytest.mark.parametrize(
    ("target", "tokens"), [(2.5, 1500), (2.0, 2000), (1.75, 2500), (1.5, 3000), (1.4, None), (3.5, 1000)]
)
def test_tokens_to_the_target_are_interpolated(target, tokens):
    assert race.tokens_to(CURVE, target) == tokens


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        ({1: 3.0, 2: 2.0}, 4),
        ({1: 2.0, 2: 3.0}, 0.5),
        ({1: 3.0, 2: 2.0, 4: 2.5}, None),
        ({1: 2.0}, 2),
    ],
)
def test_the_search_for_a_rate_goes_on_until_worse_ones_lie_on_both_sides(losses, rate):
    assert race.next_rate(losses) == rate


def test_the_better_half_of_the_ways_goes_on(monkeypatch):
    ends = {"all": [1.63, 1.61], "mlp": [1.62], "eva": [1.65, 1.64], "linear": [1.6], "batch-2": [1.7]}
    trials = [{"way": name, "seed": race.TUNING_SEED, "loss": loss} for name, losses in ends.items() for loss in losses]
    raced = [{"way": "batch-2", "seed": 0, "loss": 1.0}]  # no trial
    monkeypatch.setattr(race.Race, "read_curves", lambda self: trials + raced)
    assert race.better_half(race.Race(), [*ends]) == ["linear", "all", "mlp"]
    with pytest.raises(SystemExit, match=r"tune .* --ways warm-up"):
        race.better_half(race.Race(), ["all", "warm-up"])
    monkeypatch.setattr(race, "curve", None)
    race.tune(race.Race(), "batch-2", race.WAYS["batch-2"].rates)  # raced already: no further trial


@pytest.mark.parametrize("name", race.WAYS)
def test_every_way_is_a_valid_config(name):
    way = race.WAYS[name]
    config = load(way.settings(0, way.rates[0]))
    assert config.lora.alpha == round(way.scale * way.rank)
    assert config.train.gradient_accumulation_steps == way.packs


def test_the_published_way_has_the_settings_of_the_published_run():
    published = configs.load(ROOT / "recipe" / "configs" / "vicuna-7b-p100.toml")
    (rate,) = race.WAYS["published"].rates
    raced = load(race.WAYS["published"].settings(0, rate))
    assert raced.lora == published.lora
    for name in ("gradient_accumulation_steps", "learning_rate", "warmup_ratio", "optimizer", "epochs"):
        assert getattr(raced.train, name) == getattr(published.train, name)
    # the packs are of the maximum length in both
    assert raced.train.micro_batch_tokens == raced.corpus.max_length
    assert published.train.micro_batch_tokens == published.corpus.max_length


@pytest.mark.parametrize("config", sorted((ROOT / "tests" / "bench").glob("race*.toml")), ids=lambda path: path.stem)
def test_the_table_and_the_picture_are_those_of_the_curves(config):
    raced = race.Race(config)
    file = raced.curves.with_name(f"{raced.name}.json")
    if not file.is_file():
        pytest.skip("no race was run yet")
    found = race.summary(raced)
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert file.with_suffix(".md").read_text(encoding="utf-8") == race_report.markdown(found)
    assert file.with_suffix(".svg").read_text(encoding="utf-8") == race_report.picture(found, race.read_raced(raced))


def test_both_races_have_the_published_settings():
    one, two = (configs.load(ROOT / "tests" / "bench" / name) for name in ("race.toml", "race-stories260k.toml"))
    assert (one.lora, one.train) == (two.lora, two.train)


@pytest.fixture
def change_run(monkeypatch, tiny_run):
    """Trains a tiny run with a change; its trainer and its adapter (name -> tensor)."""
    seen = []

    def evaluate(self, *args, **kwargs):
        seen[:] = [self]
        return found(self, *args, **kwargs)

    found = LoraTrainer.evaluate
    for owner, name in (
        (setup, "load_data"),
        (setup, "add_adapter"),
        (arguments, "TrainingArguments"),
        (dataset, "schedule"),
        (peft, "get_peft_model"),
        (LoraTrainer, "create_optimizer"),
        (LoraTrainer, "create_scheduler"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back after the test
    monkeypatch.setattr(LoraTrainer, "evaluate", evaluate)

    def run(change):
        race_change.CHANGES[change]()
        train.run(tiny_run)
        adapter = Path(tiny_run.runs) / tiny_run.name / "latest" / "adapter" / "adapter_model.safetensors"
        return seen[0], load_file(adapter)

    return run


def test_a_change_of_the_rate_of_b(change_run):
    trainer, _ = change_run("lora-plus")
    down, up = trainer.optimizer.param_groups
    assert up["initial_lr"] == 16 * down["initial_lr"] == 16 * trainer.args.learning_rate
    assert len(up["params"]) == len(down["params"]) > 0


def test_a_start_in_the_directions_of_the_inputs(change_run, monkeypatch):
    starts = {}
    start = race_change.start_from_inputs

    def keep(model, data):
        start(model, data)
        starts.update({name: value.clone() for name, value in model.state_dict().items() if "lora_A" in name})

    monkeypatch.setattr(race_change, "start_from_inputs", keep)
    change_run("eva")
    for down in starts.values():
        torch.testing.assert_close(down @ down.T, torch.eye(len(down)), atol=1e-5, rtol=0)


def test_adapters_in_the_upper_half(change_run):
    _, adapter = change_run("upper-half")
    assert {name.split(".layers.")[1].split(".")[0] for name in adapter} == {"1"}  # of 0 and 1


@pytest.mark.parametrize(("change", "kind"), [("constant", "constant_with_warmup"), ("linear", "linear")])
def test_another_decay(change_run, change, kind):
    trainer, _ = change_run(change)
    assert trainer.args.lr_scheduler_type == kind


def test_a_rate_that_falls_in_the_last_fifth(change_run):
    trainer, _ = change_run("cooldown")
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    falling = round(len(rates) / 5)
    first = -(-len(rates) * trainer.args.warmup_ratio // 1)
    assert set(rates[int(first) : len(rates) - falling]) == {trainer.args.learning_rate}
    assert falling > 1 and rates[-falling:] == sorted(rates[-falling:], reverse=True)
    assert 0 < rates[-1] <= trainer.args.learning_rate / 2


def test_short_conversations_first(change_run):
    trainer, _ = change_run("short-first")
    data = trainer.train_dataset
    means = [sum(data.lengths[row] for row in pack) / len(pack) for pack in data.packs]
    assert means == sorted(means)


def test_the_fast_config_has_the_settings_of_the_fastest_way():
    published, fast = (
        configs.load(ROOT / "recipe" / "configs" / f"{name}.toml") for name in ("vicuna-7b-p100", "vicuna-7b-p100-fast")
    )
    way, found = race.WAYS["all-half"], race.summary(race.Race())["ways"]
    needed = {name: one["to"]["rate"]["tokens"] for name, one in found.items()}
    assert min((name for name in needed if all(needed[name])), key=lambda name: sum(needed[name])) == "all-half"
    # the best rate falls with the width: 576 of SmolLM2-135M, 4,096 of 7B; see the config
    rate = found["all-half"]["learning_rate"] * (576 / 4096) ** 0.781
    assert fast.train.learning_rate == pytest.approx(rate, rel=0.1)
    assert fast.lora == dataclasses.replace(published.lora, rank=way.rank, target_modules=tuple(way.targets))
    changed = {
        "gradient_accumulation_steps": way.packs,
        "epochs": way.epochs,
        "learning_rate": fast.train.learning_rate,
    }
    unhashed = {name: getattr(fast.train, name) for name in ("eval_steps", "save_steps")}  # they change no result
    assert fast.train == dataclasses.replace(published.train, **changed, **unhashed)
    assert (fast.base, fast.corpus) == (published.base, published.corpus)


def test_the_readme_says_the_planned_hours_of_both_configs():
    configs_of = (
        configs.load(ROOT / "recipe" / "configs" / f"{name}.toml") for name in ("vicuna-7b-p100-fast", "vicuna-7b-p100")
    )
    fast, published = ([f"{hours:.1f}" for hours in sorted(make_plan(one, tokens=10**8).hours)] for one in configs_of)
    said = "{} to {} hours on a P100 instead of {} to {} (arithmetic".format(*fast, *published)
    assert said in (ROOT / "README.md").read_text(encoding="utf-8").replace("\n", " ")
