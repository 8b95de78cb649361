"""A plan for people, with the arithmetic shown."""

from collections.abc import Iterator

from recipe.core.text import table
from recipe.planning import memory
from recipe.planning.costs import DOWNLOADS
from recipe.planning.hardware import CONTEXT_MIB, MARGIN_MIB, MIB
from recipe.planning.sizing import MemoryPlan
from recipe.planning.whole import Plan


def estimated(plan: Plan) -> str:
    """What the numbers are."""
    return f"estimated by arithmetic, not yet measured on {plan.card.short}"


def verdict(plan: Plan) -> str:
    """One sentence."""
    if plan.memory.fits:
        return f"fits: {plan.left:,} MiB of the GPU's {plan.card.mib:,} remain free"
    most = plan.card.mib - MARGIN_MIB
    return (
        f"{plan.name} does not fit: found {plan.total:,} MiB, expected at most {most:,} of the GPU's "
        f"{plan.card.mib:,}, {plan.total - most:,} too many; {plan.advice}"
    )


def text(plan: Plan) -> str:
    """The plan for a person, with the arithmetic shown."""
    shape = plan.memory.shape
    head = (
        f"{plan.name}: {shape.num_hidden_layers} layers of {shape.hidden_size}/{shape.intermediate_size}, "
        f"vocabulary {shape.vocab_size:,} ({plan.memory.origin})"
    )
    return "\n".join(
        [
            head,
            "",
            *memory_lines(plan),
            "",
            *time_lines(plan),
            "",
            *cost_lines(plan),
            "",
            verdict(plan),
            estimated(plan),
        ]
    )


def memory_lines(plan: Plan) -> list[str]:
    """The memory table with the origin of each number, and the number of recomputed layers."""
    planned = plan.memory
    step, estimate = planned.step, planned.estimate
    shape, recomputed = planned.fullest
    layers, dtype = shape.num_hidden_layers, "fp16" if step.half else "fp32"
    whole, layer_input = memory.layer_kept(shape, step), step.tokens * shape.hidden_size * step.width
    trained = memory.adapter_parameters(shape, step)
    linear = f"{shape.linear_parameters() / 1e9:.2f} billion in linear layers in {step.precision}"
    kept = f"{layers - recomputed} layers keep {_mib(whole)} each"
    kept += f", {recomputed} recomputed ones {_mib(layer_input)} each" if recomputed else ""
    rows = [
        ["weights", _mib(estimate.weights), f"{linear}; embeddings, norms and lm_head in {dtype}"],
        ["adapters", _mib(estimate.adapters), f"{trained:,} parameters in fp32, and their gradients"],
        ["optimizer", _mib(estimate.optimizer), f"two moments per parameter by {step.optimizer}"],
        ["activations", _mib(estimate.kept), f"of {step.tokens:,} tokens: {kept}"],
        [
            "transient",
            _mib(max(estimate.loss, estimate.layer)),
            f"the larger of the loss, {_mib(estimate.loss)}, and one layer, {_mib(estimate.layer)}",
        ],
        ["CUDA context", f"{CONTEXT_MIB:,}", "assumed"],
        ["total", f"{plan.total:,}", ""],
        ["free", f"{plan.left:,}", f"of {plan.card.mib:,}; at least {MARGIN_MIB:,} should stay free (assumed)"],
    ]
    lines = table([["memory", "MiB", "from"], *rows], right=(1,)).splitlines()
    counts = f"{planned.recomputed} of {planned.shape.num_hidden_layers}"
    lines.append(f"{counts} layers recompute their activations; {_explain_fewest(planned)}")
    return [*lines, *_split_lines(planned)]


def _split_lines(planned: MemoryPlan) -> Iterator[str]:
    """Where the layers of a base on several GPUs are."""
    if planned.step.split > 1:
        shares = [
            f"layers {layers[0]} to {layers[-1]} on GPU {gpu}, {_mib(estimate.peak + CONTEXT_MIB * MIB)} MiB"
            for gpu, (layers, estimate) in enumerate(planned.by_gpu)
        ]
        yield f"{planned.step.split} GPUs share the base (the table is of the fullest): {'; '.join(shares)}"
        yield "they take turns, so time is that of one; not yet measured on GPUs"


def _explain_fewest(planned: MemoryPlan) -> str:
    if planned.fewest is None:
        return "even recomputing all does not fit"
    return "the fewest that fit" if planned.fewest == planned.recomputed else f"{planned.fewest} would suffice"


def _mib(size: int) -> str:
    return f"{round(size / MIB):,}"


def time_lines(plan: Plan) -> list[str]:
    """FLOP per token by term with the origin of each, then steps and hours."""
    time, shape = plan.time, plan.memory.shape
    how = {
        "forward": f"2 x {shape.linear_parameters() / 1e9:.2f} billion weights",
        "recompute": f"the same for {plan.memory.recomputed} of {shape.num_hidden_layers} layers",
        "backward": "as forward: with respect to the inputs only, frozen weights get no gradient",
        "attention": f"over {time.max_length:,} tokens, once per forward pass and twice per backward pass",
        "lm_head": f"2 x 2 x {shape.vocab_size:,} x {shape.hidden_size:,} at the trained tokens",
    }
    rows = [[name, f"{count / 1e9:.2f}", how[name]] for name, count in time.flop_per_token.items()]
    rows.append(["total", f"{sum(time.flop_per_token.values()) / 1e9:.2f}", ""])
    return [*table([["time", "GFLOP per token", "from"], *rows], right=(1,)).splitlines(), *_speed_lines(plan)]


def _speed_lines(plan: Plan) -> Iterator[str]:
    time, card = plan.time, plan.card
    (slow, fast), (low, high) = time.tokens_per_second, card.tflops
    yield f"at {low} to {high} TFLOP/s of {card.short}'s matmul: at most {slow:.0f} to {fast:.0f} tokens/s"
    yield f"rate: {card.source}"
    yield "a common system prompt is counted for every conversation here; training computes it once per pack"
    if speed := time.fp16_tokens_per_second:
        yield (
            f"with fp16 accumulation at the data sheet's {card.fp16_tflops} TFLOP/s: at most {speed:.0f} tokens/s, "
            "not yet measured"
        )
    if time.corpus.tokens is None:
        yield f"tokens unknown ({time.corpus.source}): a million take at least {_span(time.hours(1e6), 2)} hours"
        return
    epochs = f"{time.epochs:g} epoch{'s' * (time.epochs != 1)}"
    work = f"{time.corpus.tokens:,} tokens ({time.corpus.source}) x {epochs}"
    yield f"{work}: {time.steps:,} optimizer steps if every pack were full"
    yield f"{work}: at least {_span(time.hours(time.corpus.tokens * time.epochs), 1)} hours if all time were matmul"


def _span(hours: list[float], digits: int) -> str:
    low, high = (f"{round(value, digits):,}" for value in (min(hours), max(hours)))
    return low if low == high else f"{low} to {high}"


def cost_lines(plan: Plan) -> Iterator[str]:
    """Several GPUs, money, downloads and disk; what changes on the card."""
    if plan.card.note:
        yield f"on {plan.card.short}: {plan.card.note}"
    yield from _parallel_lines(plan)
    if plan.money:
        yield f"money: {_span(plan.money, 0)} at {plan.price:g} per GPU and hour, for the hours of training alone"
    if plan.download:
        spans = ", ".join(f"{plan.download / rate / 60:.0f} minutes at {name}" for name, rate in DOWNLOADS.items())
        yield f"download: {_gb(plan.download)} of raw weights, {spans}"
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in plan.disk.items())
    yield f"disk: {_gb(sum(plan.disk.values()))} ({parts})"


def _parallel_lines(plan: Plan) -> Iterator[str]:
    if not (parallel := plan.parallel):
        return
    alone = [plan.time.tokens_per_step / speed for speed in plan.time.tokens_per_second]
    yield (
        f"{parallel.gpus} GPUs: {parallel.packs} packs each in a step of {_span(list(parallel.step_seconds), 1)} s; "
        "the global batch and the loss curve stay the same"
    )
    for link, seconds in parallel.all_reduce.items():
        times = [parallel.speedup(link, alone[rate], rate) for rate in (0, 1)]
        yield f"all-reduce over {link}: {seconds:.3f} s a step, so {_span(times, 2)} times as fast as one"
    if parallel.hours:
        yield f"at least {_span(parallel.hours, 1)} hours on {parallel.gpus} GPUs"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
