"""Packing loses nothing, never overfills, and is the seed's alone."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.conversations.packing import fill, pack, schedule

LENGTHS = st.lists(st.integers(1, 60), max_size=80)


@settings(deadline=None, max_examples=200)
@given(LENGTHS, st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 9))
def test_every_conversation_once_and_no_pack_over_budget(lengths, budget, seed, epoch):
    packs = pack(lengths, budget, seed, epoch)
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(lengths)))
    for chosen in packs:
        assert chosen and (len(chosen) == 1 or sum(lengths[index] for index in chosen) <= budget)
    assert packs == pack(lengths, budget, seed, epoch)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 30), st.integers(1, 200))
def test_what_all_begin_with_is_charged_once_and_a_third_of_it_for_every_further_one(own, shared, budget):
    packs = pack([shared + each for each in own], budget, seed=3, prefix=shared)
    assert sorted(index for chosen in packs for index in chosen) == list(range(len(own)))
    for chosen in packs:
        charged = shared + sum(own[index] for index in chosen) + (len(chosen) - 1) * -(-shared // 3)
        assert len(chosen) == 1 or charged <= budget
    assert len(packs) <= len(pack([shared + each for each in own], budget, seed=3))
    assert fill(packs, [shared + each for each in own], 1000, shared) == pytest.approx(
        (sum(own) + shared * len(packs) + (len(own) - len(packs)) * -(-shared // 3)) / 1000 / len(packs)
    )


@settings(deadline=None, max_examples=100)
@given(LENGTHS, st.integers(1, 50))
def test_the_tightest_fit_is_taken(lengths, budget):
    """Against the definition of best fit decreasing, written the slow way: the same free tokens are left."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda number: rooms[number])] -= length
        else:
            rooms.append(max(0, budget - length))
    packs = pack(lengths, budget, seed=0)
    assert sorted(max(0, budget - sum(lengths[index] for index in chosen)) for chosen in packs) == sorted(rooms)


def test_seed_and_epoch_change_who_shares_a_pack_and_the_order():
    lengths = [random.Random(0).randint(20, 700) for _ in range(300)]
    seen = [pack(lengths, 1024, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    shared = [{frozenset(chosen) for chosen in packs} for packs in seen]
    for number in range(1, 4):
        assert seen[0] != seen[number] and shared[0] != shared[number]


def test_lengths_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="expected 1 or more"):
        pack([3, 0], 8, seed=0)
    with pytest.raises(ValueError, match="expected 1 or more"):
        pack([3], 0, seed=0)
    with pytest.raises(ValueError, match="expected some of both"):
        schedule([], 8, seed=0, epochs=1.0, per_step=1)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(10, 80),
    st.floats(0.1, 3.5),
    st.integers(1, 7),
)
def test_a_schedule_is_whole_passes_in_whole_steps(lengths, budget, epochs, per_step):
    packs = schedule(lengths, budget, 5, epochs, per_step)
    assert packs and len(packs) % per_step == 0
    times = Counter(index for chosen in packs for index in chosen)
    whole = int(epochs)
    assert all(times[index] >= whole for index in range(len(lengths))), "a pass leaves no conversation out"
    if whole:
        first = pack(lengths, budget, 5, 0)
        assert packs[: len(first)] == first
    due = sum(len(pack(lengths, budget, 5, epoch)) * min(1.0, epochs - epoch) for epoch in range(whole + 1))
    assert due - 1e-9 <= len(packs) < due + per_step + 1


@pytest.mark.parametrize("budget", [512, 1024, 2048])
def test_real_conversations_fill_their_packs(assets, budget):
    """Lengths of real conversations in characters / 4; those over the budget count as split down to it."""
    lengths = []
    for name in ("gitcloner_dummy_en.json", "lf_alpaca_en_demo.json", "lf_glaive_toolcall_en_demo.json"):
        records = json.loads((assets / "conversations" / name).read_text(encoding="utf-8"))
        lengths += [min(budget, len(json.dumps(record)) // 4) for record in records]
    assert len(lengths) > 1000
    assert fill(pack(lengths, budget, seed=0), lengths, budget) >= 0.95
