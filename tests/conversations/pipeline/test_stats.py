"""Numbers of the report, and what a person sees of a sample."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.conversations.messages import Message
from recipe.conversations.packing import pack
from recipe.conversations.pipeline import stats
from recipe.conversations.templates import render
from recipe.reports import corpus


@given(st.lists(st.integers(1, 2048), min_size=1))
def test_lengths_are_numpys(values: list[int]) -> None:
    found = stats.lengths(values)
    assert (found["min"], found["max"]) == (min(values), max(values))
    assert found["median"] == np.quantile(values, 0.5, method="inverted_cdf")
    assert found["p90"] == np.quantile(values, 0.9, method="inverted_cdf")


@given(st.integers(1, 3000).flatmap(lambda limit: st.tuples(st.just(limit), st.lists(st.integers(1, limit)))))
def test_a_histogram_counts_everything_once(case: tuple[int, list[int]]) -> None:
    limit, values = case
    edges = stats.histogram(values, limit)
    assert sum(count for _, count in edges) == len(values)
    assert edges[-1][0] == limit
    below = 0
    for edge, count in edges:
        below += count
        assert below == sum(value <= edge for value in values)


@given(st.lists(st.integers(1, 700), max_size=60))
def test_packs_hold_everything_that_fits_and_no_more(values: list[int]) -> None:
    found = stats.packs(values, 512, prefix=0)
    fitting = [value for value in values if value <= 512]
    assert found["over"] == len(values) - len(fitting)
    assert -(-sum(fitting) // 512) <= found["packs"] <= len(fitting)
    if fitting:
        assert found["fullness"] == round(sum(fitting) / 512 / found["packs"], 4)
        assert found["padded"] <= found["fullness"] <= 1


def test_packs_by_hand() -> None:
    assert stats.packs([300, 200, 212, 312, 512, 600], 512, prefix=0) == {
        "packs": 3,
        "fullness": 1.0,
        "padded": 0.6,
        "over": 1,
    }


@given(st.lists(st.integers(31, 512), min_size=1, max_size=60), st.sampled_from([0, 30]))
def test_packs_are_those_of_training(values: list[int], shared: int) -> None:
    chosen = pack(values, 512, seed=7, epoch=3, prefix=shared)
    assert stats.packs(values, 512, shared)["packs"] == len(chosen)


@pytest.mark.parametrize("systems", [[None], ["Be brief."], [None, "Be brief."], ["Be brief, please.", "Be brief."]])
def test_the_common_prefix_is_that_of_training(byte_level_tokenizer, tmp_path, systems) -> None:
    from recipe.training.dataset import common_prefix, encode_file

    file = tmp_path / "train.jsonl"
    with open(file, "w") as out:
        for number, question in enumerate(["How?", "What now?", "Well", "and why"] * len(systems)):
            system = systems[number % len(systems)]
            turns = [Message("system", system)] if system else []
            turns += [Message("user", question), Message("assistant", "Yes.")]
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            out.write(json.dumps({"id": str(number), "source": "a", "messages": messages}) + "\n")
    found = stats.common_prefix(file, "vicuna_v1.1", byte_level_tokenizer)
    assert found == common_prefix(encode_file(file, byte_level_tokenizer, "vicuna_v1.1"))
    assert (found > 0) == (len(systems) == 1 or systems[0] is not None)


def test_turns_are_counted_and_long_ones_together() -> None:
    assert stats.turns([2, 4, 4, 99, 20]) == [(2, 1), (4, 2), (20, 2)]


def test_notable_samples_are_drawn_longest_and_strangest(tmp_path) -> None:
    file = tmp_path / "train.jsonl"
    texts = [f"an ordinary text number {number}" for number in range(30)]
    texts[7], texts[11] = "a long text " * 50, "@#$%^&*()" * 30
    file.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)))
    drawn, longest, strangest = stats.notable(file, seed=0).values()
    assert len({sample["id"] for sample in drawn}) == stats.RANDOM
    assert longest[0]["id"] == "7"
    assert strangest[0]["id"] == "11"
    assert next(iter(stats.notable(file, seed=0).values())) == drawn


def test_what_is_trained_is_marked_and_nothing_steers_the_terminal() -> None:
    pieces = render("vicuna_v1.1", [Message("user", "a\x1b[2Jb\u202ec"), Message("assistant", "line\n你好\r\x9b31m")])
    assert corpus.marked(pieces, colour=False).endswith(
        "USER: a\\x1b[2Jb\\u202ec ASSISTANT:⟦ line\n你好\\r\\x9b31m<eos>⟧"
    )
    coloured = corpus.marked(pieces, colour=True)
    assert coloured.count("\x1b") == 2
    assert "ASSISTANT:\x1b[32m line" in coloured
    assert coloured.endswith("<eos>\x1b[0m")
