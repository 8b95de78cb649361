"""One TOML file is a run: what it may say, and what it says when it may not."""

import math
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipe.core import config as configs
from recipe.core import schema
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


@pytest.mark.parametrize(
    "prompt",
    ['a "quoted" \\ name\twith 中文 and # signs', "".join(map(chr, range(1, 256))), "\u2028\ufeff\U0010ffff", '"""'],
)
def test_any_text_survives_a_round_trip(prompt, tmp_path):
    config = configs.load(
        None, {"evaluate.prompts": [prompt], "corpus.replace": [prompt], "corpus.identity_name": prompt}
    )
    path = tmp_path / "config.toml"
    path.write_text(configs.dump(config), encoding="utf-8")
    assert configs.load(path) == config and config.evaluate.prompts == (prompt,)


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(UsageError, match=r"train\.learning_rat.*did you mean train\.learning_rate\?"):
        configs.load(None, {"train.learning_rat": 1e-4})


def test_a_mistake_in_an_override_is_not_one_of_the_file():
    file = Path(configs.__file__).parents[1] / "configs" / "demo.toml"
    for key, value, said in (("train.epoch", 3, "unknown key train.epoch in --set; did you mean train.epochs?"),
                             ("lora.rank", 0, "lora.rank in --set")):  # fmt: skip
        with pytest.raises(UsageError, match=re.escape(said)):
            configs.load(file, {key: value})


def test_an_unknown_section_lists_what_is_known():
    with pytest.raises(UsageError, match=r"unknown key zzz .*base, corpus"):
        configs.load(None, {"zzz.epochs": 1})


@pytest.mark.parametrize(("old", "instead"), sorted(configs.OLD_KEYS.items()))
def test_an_old_key_names_what_replaces_it(old, instead):
    with pytest.raises(UsageError, match=re.escape(f"{old} in --set is no longer a key: {instead}")):
        configs.load(None, {old: 1})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("train.epochs", "three", "expected a number .float."),
        ("train.seed", 1.5, "expected a whole number .int."),
        ("train.seed", True, "expected a whole number .int."),
        ("train.recompute", True, "expected a whole number or auto"),
        ("train.recompute", "few", "expected a whole number or auto"),
        ("lora.target_modules", "q_proj", "expected a list of strings"),
        ("base.precision", "int4", "expected one of int8, nf4, fp16, fp32"),
        ("train", 3, "is a section"),
        ("lora.target_modules", ["q_prj"], r"found 'q_prj', did you mean q_proj\?"),
        ("lora.target_modules", [], "expected some of q_proj"),
        ("lora.target_modules", ["q_proj", "q_proj"], "each once"),
        ("lora.dropout", 1.5, "expected at least 0 and at most 0.95, found 1.5"),
        ("lora.dropout", float("nan"), "expected at least 0 .* found nan"),
        ("lora.rank", 10**9, "at most 4,096"),
        ("lora.alpha", 0, "at least 1"),
        ("train.learning_rate", 0, "expected a number above 0 and at most 1, found 0.0"),
        ("train.learning_rate", -1e-4, "a number above 0"),
        ("train.learning_rate", float("inf"), "found inf"),
        ("train.warmup_ratio", 2, "at most 1"),
        ("train.epochs", 1e9, "at most 1,000"),
        ("train.epochs", 10**400, "expected a number"),
        ("train.seed", 2**32, "at most 4,294,967,295"),
        ("train.seed", -1, "at least 0"),
        ("train.gradient_accumulation_steps", 10**9, "at most 100,000"),
        ("train.save_steps", 0, "at least 1"),
        ("train.keep_checkpoints", -1, "at least 1"),
        ("train.max_grad_norm", 0.0, "above 0"),
        ("train.weight_decay", -0.1, "at least 0"),
        ("train.micro_batch_tokens", 10**18, "at most 1,048,576"),
        ("evaluate.max_new_tokens", 0, "at least 1"),
        ("corpus.identity_repeat", 10**9, "at most 1,000"),
        ("corpus.processes", 10**18, "at most 1,024"),
        ("corpus.repeated_digits", 10**18, "at most 1,000"),
        ("name", "../../x", "expected a folder name without '/'"),
        ("name", "/", "expected a folder name"),
        ("name", "", "expected a folder name"),
        ("name", "..", "expected a folder name"),
        ("name", "x" * 101, "at most 100 characters"),
        ("name", "x\x1b[2J", "without control characters, found 'x.x1b"),
        ("base.path", "a\0b", "without NUL"),
        ("base.path", "x" * 300, "at most 255 bytes per part"),
        ("base.path", "\udcff", "expected text in UTF-8"),
        ("evaluate.prompts", ["x" * 200_000], "at most 100,000 characters, found 200,000"),
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
    with pytest.raises(UsageError, match="is not a TOML file"):
        configs.load(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"name = 'a\x00'",
        b"a = " + b"[" * 100_000,
        b"a = " + b"{a = " * 100_000,
        b"a = " + b"9" * 100_000,
        b"a = 0x" + b"f" * 100_000,
        b"a." * 100_000 + b"a = 1",
        b'"a" . ' * 100_000 + b"a = 1",
        b"[" + b"a." * 100_000 + b"a]",
        b"x = {" + b"a." * 100_000 + b"a = 1}",
        b"train.seed = 0x" + b"f" * 100_000,
        b"a" * 900_000 + b" = 1",
        b"# " + b"x" * (2 << 20),
    ],
    ids=range(13),
)
def test_a_hostile_file_is_one_short_sentence(content, tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    started = time.monotonic()
    with pytest.raises(UsageError) as error:
        configs.load(path)
    assert time.monotonic() - started < 5
    assert_short(error.value)


@pytest.mark.parametrize("path", ["{}", "{}/" + "x" * 300, "{}/a\0b", "{}/a\x1b[2J", "{}/" + "\udcff", "{}/fifo"])
def test_a_path_that_is_no_file_is_one_sentence(path, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError) as error:
        configs.load(Path(path.format(tmp_path)))
    assert_short(error.value)


def assert_short(error: UsageError) -> None:
    text = str(error)
    assert len(text) < 900 and text.isprintable() and text


AWKWARD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 10**18, 10**400, -(10**400)]),
    st.floats(),
    st.text(),
    st.sampled_from(["", " ", ".", "..", "/", "\0", "\x1b[2J", "\x7f", "\udcff", "x" * 300, "auto", "fp16", "inf"]),
    st.dates(),
    st.lists(st.one_of(st.text(), st.integers()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.text(), st.integers()), max_size=3),
    st.lists(
        st.dictionaries(st.sampled_from(["path", "share", "weight", "fields"]), st.text() | st.floats()), max_size=2
    ),
)
KEYS = sorted(name for name, _ in schema.list_fields(Config) if "[]" not in name)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(KEYS), AWKWARD)
def test_every_value_is_valid_or_one_short_sentence(tmp_path, key, value):
    """A valid one round-trips through its own TOML, and is finite."""
    try:
        config = configs.load(None, {key: value})
    except UsageError as error:
        assert_short(error)
        assert key.partition("[")[0] in str(error)
        return
    path = tmp_path / "config.toml"
    path.write_text(configs.dump(config), encoding="utf-8")
    assert configs.load(path) == config
    for dotted in KEYS:
        section, _, name = dotted.rpartition(".")
        found = getattr(getattr(config, section) if section else config, name)
        assert not isinstance(found, float) or math.isfinite(found)


TABLE = sorted(name.partition("[].")[2] for name, _ in schema.list_fields(Config) if "[]." in name)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(TABLE), AWKWARD)
def test_every_value_of_a_source_is_valid_or_one_short_sentence(tmp_path, key, value):
    try:
        config = configs.load(None, {"corpus.source": [{key: value}]})
    except UsageError as error:
        assert_short(error)
        assert f"corpus.source[0].{key}" in str(error)
        return
    if isinstance(value, str) and value.encode(errors="replace").decode() != value:
        return  # a file's name that is not UTF-8, which TOML cannot hold
    path = tmp_path / "config.toml"
    path.write_text(configs.dump(config), encoding="utf-8")
    assert configs.load(path) == config


@given(st.lists(st.text(), max_size=3))
def test_any_set_flag_is_valid_or_one_short_sentence(assignments):
    try:
        configs.load(None, configs.parse_set(assignments))
    except UsageError as error:
        assert_short(error)


def test_every_number_has_a_range():
    """No knob takes a value that would fill a disk or run for ever."""
    for dotted, item in schema.list_fields(Config):
        if item.type in (int, float, int | str):
            limits = item.metadata
            assert limits["high"] is not None and (limits["low"] is not None or limits["above"] is not None), dotted


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
        (["a.json"], r"corpus\.source in .* expected \[\[corpus\.source\]\] tables"),
        (
            [{"path": "a"}, {"pth": "b"}],
            r"unknown key corpus\.source\[1\]\.pth .*did you mean corpus\.source\[1\]\.path",
        ),
        ([{"share": "all"}], r"corpus\.source\[0\]\.share .*expected a number"),
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


def test_help_prints_only_the_fields_asked_for():
    lines = list(configs.describe(["lora", "base.path"]))
    assert [line.partition(":")[0] for line in lines] == [
        "base.path",
        *(f"lora.{name}" for name in ("rank", "alpha", "dropout", "target_modules", "start")),
    ]


def test_required_says_how_to_give_it():
    with pytest.raises(UsageError, match=r"base\.source is empty: pass --source, or a --config FILE that sets it"):
        configs.required(Config(), "base.source", "--source")
