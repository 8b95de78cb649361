"""The benchmark's numbers as Markdown tables and an SVG picture."""

from html import escape
from typing import Any

NAMES = {
    "ours": "**this recipe**, fp32 base",
    "int8": "**this recipe**, int8 base",
    "usual": "the usual way: padded to full length, whole model checkpointed, eager attention, all logits",
    "grouped": "batches of similar lengths, padded to the longest, no checkpointing",
    "trl": "TRL 0.17 SFTTrainer, packing (cuts conversations, trains on every token)",
    "llamafactory": "LLaMA-Factory 0.9.3, neat packing, no checkpointing",
}
SHORT = {
    "ours": "this recipe",
    "int8": "this recipe, int8",
    "usual": "the usual way",
    "grouped": "grouped",
    "trl": "TRL, packing",
    "llamafactory": "LLaMA-Factory",
}
LEVERS = {
    "no-packing": "packing (one conversation per pass)",
    "no-shared-prompt": "prefix sharing (a system prompt per conversation)",
    "no-blocks": "tiled attention (S x S)",
    "no-chunked-loss": "the chunked loss at trained tokens (all logits)",
    "no-lean-layers": "fused norms, MLPs and rotations (those of transformers)",
    "no-kept-activations": "kept activations (every layer checkpointed)",
    "larger-packs": "nothing, but with packs of twice the tokens",
}
COLOURS = {"ours": "#2563eb", "int8": "#60a5fa"}


def markdown(found: dict[str, Any]) -> str:
    """All measured parts, with the machines that they were measured on."""
    parts = [training(found[f"train-{length}"]) for length in (512, 2048) if f"train-{length}" in found]
    parts += [all_layers(found[f"train-{n}-all"]) for n in (512, 2048) if f"train-{n}-all" in found]
    parts += [ablation(found[f"levers-{length}"]) for length in (512, 2048) if f"levers-{length}" in found]
    parts += [profile(found[f"profile-{length}"]) for length in (512, 2048) if f"profile-{length}" in found]
    if "packing" in found:
        lengths = [(length, row) for length, row in found["packing"].items() if length.isdecimal()]
        rows = [[length, *(share(row[name]) for name in ("full", "own", "padded"))] for length, row in lengths]
        head = [
            "conversations of up to",
            "full: packs of 2,048 tokens",
            "full: packs of that length",
            "full: padded to that length",
        ]
        parts.append(table(head, rows))
    rows = []
    if "first step" in found:
        rows.append(["`make train` to the end of the first step, 135M on int8", f"{found['first step']['seconds']} s"])
    if "convert" in found:
        one = found["convert"]
        rows.append([f"converting a {one['checkpoint_gb']} GB Meta checkpoint", f"{one['seconds_per_gb']} s per GB"])
        rows.append(["the same: peak memory", f"{one['peak_memory_gb']} GB"])
    if "ours" in found.get("corpus", {}):
        one, rate = found["corpus"], "conversations_per_second"
        low, high = one["from_to"]
        times = f"{one['ratio']} times ({low} to {high}) the usual pipeline's {one['usual'][rate]:,}"
        speed = f"{one['ours'][rate]:,} a second, {times}"
        rows.append([f"preparing {one['conversations']:,} ShareGPT conversations", speed])
        rows.append(["the same: peak memory", f"{one['ours']['peak_memory_gb']} GB"])
    if rows:
        parts.append(table(["", "measured"], rows))
    machines = sorted({part["machine"] for part in found.values()})
    return "\n".join([*parts, f"Measured on {'; '.join(machines)}, no GPU."]) + "\n"


def training(part: dict[str, Any]) -> str:
    head = [
        f"at length {part['length']}",
        "useful tokens/s",
        "trained tokens/s",
        "times the usual",
        "compute, times the needed",
        "share of the matmul limit",
        "peak memory",
        "loss",
    ]
    rows = []
    for way, one in part["ways"].items():
        low, high = one["from_to"]
        trained = "all" if way == "trl" else f"{one['trained_per_second']:.0f}"
        speed = f"{one['tokens_per_second']:.0f} ({low:.0f} to {high:.0f})"
        if one.get("other_turns"):  # at another speed of the machine: only the ratio can be compared
            speed = trained = "other turns"
        loss = "differs" if way == "trl" else one["loss"]
        rows.append(
            [
                on_machine(NAMES[way], one),
                speed,
                trained,
                ratio(one, "usual"),
                f"{one['times_work']:.2f}",
                share(one["share_of_matmul"], 0),
                f"{one['peak_mb'] / 1000:.1f} GB",
                loss,
            ]
        )
    turn = f"{part['conversations']} conversations per turn, {part['mean_length']} tokens on average"
    note = f"{turn}; median of {part['repeats']} turns (lowest to highest)."
    note += (
        "\nRatios are medians over interleaved turns of two or three ways, not quite ratios of medians; int8, TRL and"
    )
    note += "\nLLaMA-Factory took theirs with ours alone."
    note += "\nThe share of the matmul limit counts needed compute alone; times the column before it, all compute."
    return table(head, rows) + f"\n{note}\n"


def ablation(part: dict[str, Any]) -> str:
    whole = part["ways"]["ours"]
    rows = [["nothing left out", "1.00", f"{whole['peak_mb'] / 1000:.1f} GB"]]
    for way, name in LEVERS.items():
        if way not in part["ways"]:
            continue
        one = part["ways"][way]
        rows.append([on_machine(name, one), ratio(one, "ours"), f"{one['peak_mb'] / 1000:.1f} GB"])
    return table([f"at length {part['length']}, without", "speed, times all optimizations", "peak memory"], rows)


def profile(part: dict[str, Any]) -> str:
    """Where the time of a step goes, beside what its matmuls need at the machine's rate."""
    rows = []
    for name, one in part["parts"].items():
        needed = one.get("needed", 0.0)
        lost = (one["seconds"] - needed) / part["profiled"]
        rows.append([name, one["seconds"], needed or "", share(lost)])
    head = [f"a step at length {part['length']}, seconds", "taken", "needed at the matmul limit", "lost, of the step"]
    note = (
        f"Under torch's profiler {part['profiled']} s, without it {part['seconds']} s; limit {part['gflops']} GFLOP/s."
    )
    return table(head, rows) + f"\n{note}\n"


def all_layers(part: dict[str, Any]) -> str:
    """Adapters on all seven linear layers of each decoder layer, beside batches of similar lengths."""
    head = [
        f"at length {part['length']}, adapters on all linear layers",
        "useful tokens/s",
        "times ours",
        "peak memory",
    ]
    rows = [
        [NAMES[way], f"{one['tokens_per_second']:.0f}", ratio(one, "ours"), f"{one['peak_mb'] / 1000:.1f} GB"]
        for way, one in part["ways"].items()
    ]
    return table(head, rows)


def on_machine(name: str, one: dict[str, Any]) -> str:
    """The name of a row, with the machine if it was measured on another than the rest of its table."""
    return f"{name} [{one['machine']}]" if "machine" in one else name


def ratio(one: dict[str, Any], other: str) -> str:
    """The median over the turns that both ways took, and the lowest and highest of them if there were any."""
    low, high = one.get(f"times_{other}_from_to", (None, None))
    return f"{one[f'times_{other}']:.2f}" + (f" ({low:.2f} to {high:.2f})" if low and low != high else "")


def share(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def picture(found: dict[str, Any]) -> str:
    """Bars of the speed relative to ours with the range of the turns, a group per length, as an SVG for any page."""
    width, label, line, y = 720, 150, 26, 16
    out = []
    for length in (512, 2048):
        ways = found.get(f"train-{length}", {}).get("ways", {})
        if not ways:
            continue
        out.append(f'<text x="0" y="{y + 8}" font-weight="bold">{heading(length, ways["ours"])}</text>')
        y += line
        scale = (width - label - 250) / max(one["times_ours"] for one in ways.values())
        for way, one in ways.items():
            out += bar(label, y, SHORT[way], COLOURS.get(way, "#9ca3af"), one, scale)
            y += line
        y += line // 2
    style = "text { font: 13px sans-serif; fill: #6b7280 }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}">'
        f"<title>Speed of training on a CPU beside other ways</title><style>{style}</style>{''.join(out)}</svg>\n"
    )


def heading(length: int, ours: dict[str, Any]) -> str:
    return f"conversations of up to {length:,} tokens: speed; this recipe's is {ours['tokens_per_second']:.0f} tokens/s"


def bar(x: int, y: int, name: str, colour: str, one: dict[str, Any], scale: float) -> list[str]:
    """A way's bar, its name on the left, its ratios on the right, and a line from its slowest to its fastest turn."""
    size = round(scale * one["times_ours"])
    low, high = one.get("times_ours_from_to", 2 * [one["times_ours"]])
    text = f"{one['times_ours']:.2f} of ours, {one['times_usual']:.1f} times the usual"
    end = max(size, round(scale * high)) + 8
    return [
        f'<text x="{x - 8}" y="{y + 10}" text-anchor="end">{escape(name)}</text>',
        f'<rect x="{x}" y="{y - 4}" width="{size}" height="18" rx="2" fill="{colour}"/>',
        f'<path d="M{x + round(scale * low)} {y + 5}H{x + round(scale * high)}" stroke="#f59e0b" stroke-width="3"/>',
        f'<text x="{x + end}" y="{y + 10}">{text}</text>',
    ]
