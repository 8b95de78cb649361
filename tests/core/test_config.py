"""One TOML file is a run: what it may say, and what it says when it may not."""

import dataclasses
from pathlib import Path

import pytest

from recipe.core import config as configs
from recipe.core.config import Config, Source
from recipe.core.errors import UsageError

SHIPPED = sorted(
    path for path in (Path(configs.__file__).parents[1] / "configs").glob("*.toml") if path.name != "sources.toml"
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_replays_from_its_own_copy(path, tmp_path):
    config = configs.load(path)
    copy = tmp_path / "config.toml"
    copy.write_text(configs.dump(config), encoding="utf-8")
    assert configs.load(copy) == config
    assert config.name == path.stem or path.stem.startswith(config.name)


def test_there_are_shipped_configs():
    assert {"demo", "vicuna-7b-p100"} <= {path.stem for path in SHIPPED}


def test_defaults_survive_a_round_trip_with_awkward_strings(tmp_path):
    config = dataclasses.replace(Config(), name='a "quoted" \\ name\twith 中文 and # signs')
    path = tmp_path / "config.toml"
    path.write_text(configs.dump(config), encoding="utf-8")
    assert configs.load(path) == config


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(UsageError, match=r"train\.learning_rat.*did you mean train\.learning_rate\?"):
        configs.load(None, {"train.learning_rat": 1e-4})


def test_an_unknown_section_lists_what_is_known():
    with pytest.raises(UsageError, match=r"unknown key zzz .*base, corpus"):
        configs.load(None, {"zzz.epochs": 1})


@pytest.mark.parametrize(("old", "new"), sorted(configs.RENAMED.items()))
def test_a_renamed_key_names_the_new_one(old, new):
    with pytest.raises(UsageError, match=rf"{old} in .* is now called {new}: rename the key"):
        configs.load(None, {old: 1})
    assert any(line.startswith(f"{new}: ") for line in configs.describe())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.epochs", "three", "expected float"),
        ("train.seed", 1.5, "expected int"),
        ("train.seed", True, "expected int"),
        ("train.recompute", True, "expected a whole number or auto"),
        ("train.recompute", "few", "expected a whole number or auto"),
        ("lora.target_modules", "q_proj", "expected a list of strings"),
        ("base.precision", "int4", "expected one of int8, nf4, fp16, fp32"),
        ("train", 3, "is a section"),
    ],
)
def test_a_wrong_value_says_what_was_expected(key, value, said):
    with pytest.raises(UsageError, match=said):
        configs.load(None, {key: value})


def test_set_reads_toml_values_and_bare_words():
    parsed = configs.parse_set(["train.epochs=2", "name=night run", 'lora.target_modules=["q_proj"]', "train.seed = 7"])
    config = configs.load(None, parsed)
    assert (config.train.epochs, config.name, config.train.seed) == (2.0, "night run", 7)
    assert config.lora.target_modules == ("q_proj",)


def test_set_without_a_value_is_refused():
    with pytest.raises(UsageError, match=r"section\.key=value"):
        configs.parse_set(["train.epochs"])


def test_a_file_that_is_not_there_or_not_toml(tmp_path):
    with pytest.raises(UsageError, match="no config file"):
        configs.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = \n")
    with pytest.raises(UsageError, match="is not TOML"):
        configs.load(tmp_path / "bad.toml")


def test_places_and_saving_do_not_change_what_is_hashed():
    one = configs.load(None, {"base.path": "/here", "runs": "/there", "train.save_steps": 1})
    assert configs.hashed(one) == configs.hashed(Config())
    for change in ({"train.seed": 1}, {"train.matmul_accumulation": "fp16"}):
        assert configs.hashed(configs.load(None, change)) != configs.hashed(Config())


def test_every_field_has_its_line_of_help():
    lines = list(configs.describe())
    assert any(line.startswith("lora.rank: ") for line in lines)
    assert all(line.partition(": ")[2].strip() for line in lines)


def test_a_corpus_of_several_sources_survives_a_round_trip(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        '[corpus]\npath = "data/x"\n[[corpus.source]]\npath = "a.json"\nshare = 0.5\n'
        'fields = { "a.b" = "c", d = "e" }\n'
        '[[corpus.source]]\npath = "b.json"\nweight = 2\nroles = { client = "user" }\nhtml = true\n'
    )
    config = configs.load(path)
    assert config.corpus.source == (
        Source(path="a.json", share=0.5, fields={"a.b": "c", "d": "e"}),
        Source(path="b.json", weight=2.0, roles={"client": "user"}, html=True),
    )
    path.write_text(configs.dump(config), encoding="utf-8")
    assert configs.load(path) == config
    hashed = configs.hashed(config)["corpus"]["source"]
    assert [(source["share"], source["weight"]) for source in hashed] == [(0.5, 0.0), (1.0, 2.0)]
    assert "path" not in hashed[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["a.json"], r"corpus\.source in .* expected tables, as \[\[corpus\.source\]\]"),
        (
            [{"path": "a"}, {"pth": "b"}],
            r"unknown key corpus\.source\[1\]\.pth .*did you mean corpus\.source\[1\]\.path",
        ),
        ([{"share": "all"}], r"corpus\.source\[0\]\.share .*expected float"),
        ([{"fields": {"question": 1}}], r"corpus\.source\[0\]\.fields .*expected a table of strings"),
    ],
)
def test_a_wrong_source_says_what_was_expected(value, said):
    with pytest.raises(UsageError, match=said):
        configs.load(None, {"corpus.source": value})


@pytest.mark.parametrize("key", ["sources", "formats", "sample", "mixture"])
def test_a_replaced_key_names_the_new_form(key):
    with pytest.raises(UsageError, match=rf"corpus\.{key} in .* \[\[corpus\.source\]\] table per source"):
        configs.load(None, {f"corpus.{key}": ["a.json=1"]})


def test_required_says_how_to_give_it():
    with pytest.raises(UsageError, match="pass --source or set it"):
        configs.required(Config(), "base.source", "--source")
