"""The race of ways of training: its arithmetic, and that its table is that of the committed curves."""

import importlib.util
import json
from pathlib import Path

import pytest

from recipe.core import config as configs

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("race", ROOT / "tests" / "bench" / "race.py")
race = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(race)

CURVE = [(1000, 3.0), (2000, 2.0), (3000, 1.5)]


def load(settings):
    return configs.load(race.CONFIG, configs.parse_set([f"{key}={value}" for key, value in settings.items()]))


@pytest.mark.parametrize(
    ("target", "tokens"), [(2.5, 1500), (2.0, 2000), (1.75, 2500), (1.5, 3000), (1.4, None), (3.5, 1000)]
)
def test_tokens_to_the_target_are_interpolated(target, tokens):
    assert race.tokens_to(CURVE, target) == tokens


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


def test_the_table_is_that_of_the_curves():
    file = race.CURVES.parent / "race.json"
    if not file.is_file():
        pytest.skip("no race was run yet")
    found = race.summary()
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert file.with_suffix(".md").read_text(encoding="utf-8") == race.markdown(found)
