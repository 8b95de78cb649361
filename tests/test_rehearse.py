"""A rehearsal on a CPU with a small shape: measured against the plan, and what it refuses."""

import json
from pathlib import Path

import pytest

from recipe import rehearse
from recipe.core.cli import entry
from recipe.core.errors import RecipeError
from recipe.environment import measure
from recipe.planning import cards, sizing
from recipe.reports import rehearsal as report

ROOT = Path(__file__).parents[1]
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
}
SMALL = ["corpus.max_length=320", "train.micro_batch_tokens=320", "train.recompute=1", "lora.dropout=0.1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A config.json and nothing else: a rehearsal needs no weights."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text(json.dumps(SHAPE))
    (folder / "my.toml").write_text(f'name = "small"\nruns = "{folder}/runs"\n[base]\npath = "{folder}/base"\n')
    return folder


def flags(folder, *changes):
    return ["--config", str(folder / "my.toml"), *(f for change in (*SMALL, *changes) for f in ("--set", change))]


@pytest.fixture(scope="module")
def result(folder):
    """One rehearsal; the test must be quick, so the disk is measured with little."""
    patch = pytest.MonkeyPatch()
    patch.setattr(rehearse, "DISK_BYTES", 4 << 20)
    with patch.context():
        output = folder / "results" / "small.json"
        arguments = [*flags(folder), "--tokens", "1000000", "--output", str(output)]
        assert entry(lambda: rehearse.main(arguments)) == 0
    return json.loads(output.read_text())


def test_measured_memory_is_the_plans_within_a_tenth(result):
    memory = result["memory"]
    assert memory["planned_mib"] > 10
    assert memory["measured_mib"] == pytest.approx(memory["planned_mib"], rel=0.10)


def test_a_run_resumed_from_the_middle_computes_the_same_loss(result):
    assert result["checks"]["resume_difference"] == 0.0
    losses = result["checks"]["losses"]
    assert len(losses) == 6 and losses[0] == pytest.approx(6.9, abs=0.3), "of 1,000 random tokens: ln 1000"


def test_hours_follow_from_the_measured_speed(result):
    speed, hours = result["speed"], result["hours"]
    assert hours["tokens"] == 1_000_000
    assert hours["measured"] == pytest.approx(1e6 / speed["tokens_per_second"] / 3600, abs=0.01)
    assert 0 < speed["tokens_per_second"] < speed["limit_tokens_per_second"] * 1.1
    assert {(row["fan_in"], row["fan_out"]) for row in result["matmul"]} == {
        (256, 256), (256, 128), (256, 688), (688, 256)
    }  # fmt: skip


def test_the_result_can_be_sent_in(result, folder):
    """No path, host name or user: what it says of the device is what a reader needs."""
    import platform

    text = json.dumps(result)
    assert str(folder) not in text and platform.node() not in text
    assert result["device"]["name"] and result["disk"]["write_mb_s"] > 0 and result["loader_tokens_per_second"] > 0
    assert not list((folder / "runs").glob(".rehearse*")) and not list(folder.glob(".rehearse*"))
    table = report.text(result)
    assert "peak memory, MiB" in table and "no known rate" in table and "256 to 688" in table


def test_what_a_killed_rehearsal_left_is_removed(tmp_path):
    (tmp_path / ".rehearse").mkdir()
    (tmp_path / ".rehearse" / "disk").write_bytes(b"x" * 1000)
    with rehearse.scratch_folder(tmp_path) as folder:
        assert not list(folder.iterdir())
        assert (tmp_path / ".rehearse.lock").is_file()
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_before_anything_is_allocated(folder, capsys, monkeypatch):
    monkeypatch.setattr(sizing, "available_memory", lambda: 1500 << 20)
    monkeypatch.setattr(measure, "probe", lambda *args: pytest.fail("it began"))
    assert entry(lambda: rehearse.main(flags(folder))) == 3
    assert "expected at most 0 (free memory less 1,500)" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_refused_before_anything_is_measured(folder, capsys, monkeypatch):
    monkeypatch.setattr(rehearse, "run", lambda *args: pytest.fail("it began"))
    assert entry(lambda: rehearse.main([*flags(folder), "--output", str(folder / "my.toml" / "small.json")])) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_seven_billion_weights_on_a_cpu_are_refused(folder, capsys):
    assert entry(lambda: rehearse.main([*flags(folder), "--shape", "7b"])) == 3
    assert "expected a CUDA GPU" in capsys.readouterr().err


def test_the_table_of_the_readme_is_that_of_the_results(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert rehearse.main(["--table"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "README.md").read_text(encoding="utf-8")
    assert report.read_all(ROOT / "results"), "there is at least one"


def test_a_file_that_is_no_result_is_one_sentence(tmp_path):
    (tmp_path / "x.json").write_text('{"device": 1}')
    with pytest.raises(RecipeError, match="not the result of a rehearsal"):
        report.read_all(tmp_path)


def test_cards_are_found_by_the_drivers_name():
    assert cards.find("Tesla P100-PCIE-16GB", 16_280) is cards.CARDS["p100"]
    assert cards.find("Tesla P100-PCIE-12GB", 12_198) is cards.CARDS["p100-12gb"]
    assert cards.find("NVIDIA A100-SXM4-40GB", 40_536) is cards.CARDS["a100"]
    assert cards.find("NVIDIA GeForce GTX 1080", 8_000) is None
