"""Pack conversations side by side up to a token budget, so that no forward pass computes padding.

Best-fit decreasing: the longest first, each into the fullest pack that still has room (at most 11/9 of the smallest
number of packs, Johnson 1973; chat data has many short conversations that fill the gaps). No conversation is cut or
dropped. A pack stores the common prefix of all conversations (the system prompt) once. Seed and epoch decide which of
several equally long conversations goes where, and the order of the packs; the result is the same on every machine.
"""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Sequence


def saved_tokens(prefix: int) -> int:
    """Tokens of the budget that a conversation saves because the pack already stores its prefix of `prefix` tokens.

    The prefix is computed once per pack, but attention keeps a copy of it for each conversation. Queries, keys, values
    and outputs are at most a third of an adapted layer's activations on a GPU, so a third of the prefix stays charged:
    a full pack keeps no more memory than one long conversation (tests/planning/test_memory.py).
    """
    return prefix - math.ceil(prefix / 3)


def pack(lengths: Sequence[int], budget: int, seed: int, epoch: int = 0, prefix: int = 0) -> list[list[int]]:
    """Packs of indices into `lengths` (tokens, each at least 1): every index once, at most `budget` tokens a pack.

    `prefix`: length of the common prefix, less than any length, which a pack stores once; see `saved_tokens`. A
    conversation longer than the budget gets its own pack. Raises ValueError for a length or budget below 1.
    """
    if budget < 1 or (lengths and min(lengths) < 1):
        raise ValueError(f"a budget of {budget} and a shortest length of {min(lengths, default=1)}, expected 1 or more")
    lengths, budget = [length - saved_tokens(prefix) for length in lengths], max(1, budget - saved_tokens(prefix))
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
    lengths: Sequence[int], budget: int, seed: int, epochs: float, per_step: int, prefix: int = 0
) -> list[list[int]]:
    """The packs of a whole run in order: `epochs` passes, packed anew for each, `per_step` of them a step.

    If the passes end inside a step, the packs of the next pass fill it: all steps have the same number of packs, and no
    conversation is left out of a pass. Raises ValueError if there is nothing to pack.
    """
    if not lengths or epochs <= 0:
        raise ValueError(f"{len(lengths)} conversations and {epochs} epochs, expected some of both")
    passes = [pack(lengths, budget, seed, epoch, prefix) for epoch in range(math.ceil(epochs))]
    part_of_last = epochs - (len(passes) - 1)
    # rounded first: 10 packs times 1.1 - 1 are 1.0000000000000009
    due = sum(map(len, passes[:-1])) + math.ceil(round(len(passes[-1]) * part_of_last, 6))
    further = (pack(lengths, budget, seed, epoch, prefix) for epoch in itertools.count(len(passes)))
    packs = itertools.chain.from_iterable(itertools.chain(passes, further))
    return list(itertools.islice(packs, math.ceil(due / per_step) * per_step))


def fill(packs: Sequence[Sequence[int]], lengths: Sequence[int], budget: int, prefix: int = 0) -> float:
    """The share of the packs' token budget that conversations need, as `pack` counts it."""
    needed = sum(lengths[index] - saved_tokens(prefix) for chosen in packs for index in chosen)
    return (needed + len(packs) * saved_tokens(prefix)) / (budget * len(packs))
