"""Numbers of the report, and what a person sees of a sample."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recipe.conversations import overview
from recipe.conversations.messages import Message
from recipe.conversations.templates import render


@given(st.lists(st.integers(1, 2048), min_size=1))
def test_lengths_are_numpys(values: list[int]) -> None:
    found = overview.lengths(values)
    assert (found["min"], found["max"]) == (min(values), max(values))
    assert found["median"] == np.quantile(values, 0.5, method="inverted_cdf")
    assert found["p90"] == np.quantile(values, 0.9, method="inverted_cdf")


@given(st.integers(1, 3000).flatmap(lambda limit: st.tuples(st.just(limit), st.lists(st.integers(1, limit)))))
def test_a_histogram_counts_everything_once(case: tuple[int, list[int]]) -> None:
    limit, values = case
    edges = overview.histogram(values, limit)
    assert sum(count for _, count in edges) == len(values)
    assert edges[-1][0] == limit
    below = 0
    for edge, count in edges:
        below += count
        assert below == sum(value <= edge for value in values)


def test_what_is_trained_is_marked_and_nothing_steers_the_terminal() -> None:
    pieces = render("vicuna_v1.1", [Message("user", "a\x1b[2Jb\u202ec"), Message("assistant", "line\n你好\r\x9b31m")])
    assert overview.marked(pieces, colour=False).endswith(
        "USER: a\\x1b[2Jb\\u202ec ASSISTANT:⟦ line\n你好\\r\\x9b31m<eos>⟧"
    )
    coloured = overview.marked(pieces, colour=True)
    assert coloured.count("\x1b") == 2
    assert "ASSISTANT:\x1b[32m line" in coloured
    assert coloured.endswith("<eos>\x1b[0m")
