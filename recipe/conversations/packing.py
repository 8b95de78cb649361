"""Conversations side by side up to a token budget, so that no forward pass computes padding.

Best fit decreasing: the longest first, each into the fullest pack that still has room for it (at most 11/9 of the
fewest packs possible, Johnson 1973; on chat data, where short ones fill the gaps, next to none is lost). No
conversation is cut or dropped. The system prompt that all begin with stands in a pack once. Which of several equally
long ones goes where, and the order of the packs, is the seed's and the epoch's; the same numbers give the same packs on
every machine.
"""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Sequence


def saved(shared: int) -> int:
    """Tokens of the budget that a conversation does not need where `shared` of its own stand in the pack already.

    They are computed once a pack, but attention keeps a copy of them for each conversation. Its queries, keys, values
    and outputs are at most a third of an adapted layer's activations on a card, so a third of the tokens stays charged:
    a full pack keeps no more memory than one long conversation (tests/pascal/test_memory.py).
    """
    return shared - math.ceil(shared / 3)


def pack(lengths: Sequence[int], budget: int, seed: int, epoch: int = 0, shared: int = 0) -> list[list[int]]:
    """Packs of indices into `lengths` (tokens, each at least 1): every index once, the tokens of a pack <= budget.

    All begin with the same `shared` tokens, fewer than any length, which a pack has once; see `saved`. A conversation
    longer than the budget gets a pack of its own. Raises ValueError on a length or budget below 1.
    """
    if budget < 1 or (lengths and min(lengths) < 1):
        raise ValueError(f"a budget of {budget} and a shortest length of {min(lengths, default=1)}, expected 1 or more")
    lengths, budget = [length - saved(shared) for length in lengths], max(1, budget - saved(shared))
    rng = random.Random(f"{seed} {epoch}")  # noqa: S311 - an order, not a secret
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda index: -lengths[index])  # stable: equally long ones stay shuffled
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # tokens still free -> numbers of the packs that have them
    rooms = 0  # the keys of `with_room` that hold a pack, as bits: the tightest fit is the lowest set bit
    for index in order:
        length = lengths[index]
        fits = rooms >> length
        if fits:
            room = length + (fits & -fits).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            room, number = max(budget, length), len(packs)
            packs.append([])
        packs[number].append(index)
        with_room[room - length].append(number)
        rooms |= 1 << (room - length)
    rng.shuffle(packs)
    return packs


def schedule(
    lengths: Sequence[int], budget: int, seed: int, epochs: float, per_step: int, shared: int = 0
) -> list[list[int]]:
    """The packs of a whole run in order: `epochs` passes, packed anew for each, `per_step` of them a step.

    Where the passes end inside a step, the packs that would come next fill it: every step is of one size, and no
    conversation is left out of a pass. Raises ValueError where there is nothing to pack.
    """
    if not lengths or epochs <= 0:
        raise ValueError(f"{len(lengths)} conversations and {epochs} epochs, expected some of both")
    passes = [pack(lengths, budget, seed, epoch, shared) for epoch in range(math.ceil(epochs))]
    part_of_last = epochs - (len(passes) - 1)
    due = sum(map(len, passes[:-1])) + math.ceil(len(passes[-1]) * part_of_last)
    further = (pack(lengths, budget, seed, epoch, shared) for epoch in itertools.count(len(passes)))
    packs = itertools.chain.from_iterable(itertools.chain(passes, further))
    return list(itertools.islice(packs, math.ceil(due / per_step) * per_step))


def fill(packs: Sequence[Sequence[int]], lengths: Sequence[int], budget: int, shared: int = 0) -> float:
    """The share of the packs' token budget that conversations need, as `pack` counts it."""
    needed = sum(lengths[index] - saved(shared) for chosen in packs for index in chosen)
    return (needed + len(packs) * saved(shared)) / (budget * len(packs))
