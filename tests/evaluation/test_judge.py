"""Blind pairs in both orders, votes that count for their own answers only, and a page in which nothing can run."""

import json
import re

import pytest

from recipe.core.errors import RecipeError
from recipe.evaluation.judge import pairs, read_questions, read_votes, summarize
from recipe.evaluation.vote_page import build_page

QUESTIONS = read_questions()
BASE = [f"base says {item.id}" for item in QUESTIONS]
TUNED = [f"tuned says {item.id}" for item in QUESTIONS]
PAIRS = list(pairs(QUESTIONS, BASE, TUNED, "a run"))
KNOWN = {pair.id: pair for pair in PAIRS}


def vote_file(tmp_path, choose):
    file = tmp_path / "votes.jsonl"
    file.write_text("".join(json.dumps({"id": pair.id, "vote": choose(pair)}) + "\n" for pair in PAIRS))
    return file


def test_there_are_ten_questions_in_each_of_eight_categories():
    assert len({item.question for item in QUESTIONS}) == len({item.id for item in QUESTIONS}) == 80
    counts = [sum(item.category == name for item in QUESTIONS) for name in {item.category for item in QUESTIONS}]
    assert counts == [10] * 8


def test_each_question_comes_in_both_orders_and_the_order_tells_nothing():
    for one, two in zip(PAIRS[::2], PAIRS[1::2], strict=True):
        assert (one.first, one.second, one.tuned_first) == (two.second, two.first, not two.tuned_first)
        assert (one.first == f"tuned says {one.id[:3]}") == one.tuned_first
        assert set(one.blind()) == {"id", "category", "question", "first", "second"}
    assert 25 <= sum(pair.tuned_first for pair in PAIRS[::2]) <= 55
    other = list(pairs(QUESTIONS, BASE, TUNED, "another run"))
    assert [pair.tuned_first for pair in PAIRS[::2]] != [pair.tuned_first for pair in other[::2]]


def test_votes_are_counted_for_the_model_and_not_for_the_place(tmp_path):
    better = vote_file(tmp_path, lambda pair: "first" if pair.tuned_first else "second")
    found = summarize(read_votes(better, KNOWN))
    assert found["tuned"] == [1.0, 1.0, 1.0] and found["first"] == 0.5 and len(found["by_category"]) == 8
    lazy = summarize(read_votes(vote_file(tmp_path, lambda pair: "first"), KNOWN))
    assert lazy["tuned"][0] == lazy["base"][0] == 0.5 and lazy["first"] == 1.0
    assert lazy["questions"] == 80 and lazy["votes"] == 160


def test_a_tie_is_half_a_point_and_the_interval_is_over_questions(tmp_path):
    file = vote_file(
        tmp_path, lambda pair: "tie" if pair.category == "coding" else "first" if pair.tuned_first else "second"
    )
    found = summarize(read_votes(file, KNOWN) * 3)  # three people of one mind are no more than 80 questions
    assert found["tuned"][0] == pytest.approx(75 / 80)
    assert found["tuned"][1] < 0.92 and found["votes"] == 480


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no vote"),
        ("no", "line 1: not a vote"),
        ("[]", "line 1: not a vote"),
        (json.dumps({"id": PAIRS[0].id, "vote": "both"}), "expected one of first, second, tie"),
        (json.dumps({"id": "q01-1-00000000", "vote": "tie"}), "is not a pair of this run"),
        ("\n".join([json.dumps({"id": PAIRS[0].id, "vote": "tie"})] * 2), "line 2: a second vote"),
        ("[" * 100_000, "not a vote"),
    ],
)
def test_a_file_that_holds_no_votes_on_these_answers_is_one_sentence(tmp_path, content, message):
    file = tmp_path / "votes.jsonl"
    file.write_text(content)
    with pytest.raises(RecipeError, match=message):
        read_votes(file, KNOWN)
    with pytest.raises(RecipeError, match="there is no file"):
        read_votes(tmp_path / "none", KNOWN)


def test_hostile_answers_stay_data():
    hostile = "</script><script>alert(1)</script>\u202e\x1b[2J"
    page = build_page("demo/1", list(pairs(QUESTIONS[:1], [hostile], ["fine"], "a run")))
    assert page.count("</script>") == 2 and "\u202e" not in page and "\x1b" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    shown = {data["pairs"][0]["first"], data["pairs"][0]["second"]}
    assert shown == {"fine", r"</script><script>alert(1)</script>\u202e\x1b[2J"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "http" not in page.replace("http-equiv", "")
