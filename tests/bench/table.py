"""The benchmark's numbers as a table and a picture that a page can show."""

from html import escape
from typing import Any

NAMES = {
    "ours": "**this recipe**, fp32 base",
    "int8": "**this recipe**, int8 base",
    "usual": "the usual way: padded to full length, whole model checkpointed, eager attention, all logits",
    "grouped": "batches of like lengths, padded to the longest, activations kept",
    "trl": "TRL 0.17 SFTTrainer, packing (cuts conversations, trains on every token)",
}
SHORT = {
    "ours": "this recipe",
    "int8": "this recipe, int8",
    "usual": "the usual way",
    "grouped": "grouped",
    "trl": "TRL, packing",
}
LEVERS = {
    "no-packing": "packing (one conversation a pass)",
    "no-shared-prompt": "the system prompt once a pack (each conversation's own instead)",
    "no-blocks": "attention in blocks (S x S instead)",
    "no-chunked-loss": "the chunked loss at trained tokens (all logits instead)",
    "no-lean-layers": "lean norms, MLPs and rotations (transformers' own instead)",
    "no-kept-activations": "kept activations (every layer recomputed instead)",
}
COLOURS = {"ours": "#2563eb", "int8": "#60a5fa"}


def markdown(found: dict[str, Any]) -> str:
    """All parts that were measured, with the machine each came from."""
    parts = [training(found[f"train-{length}"]) for length in (512, 2048) if f"train-{length}" in found]
    parts += [ablation(found[f"levers-{length}"]) for length in (512, 2048) if f"levers-{length}" in found]
    if "packing" in found:
        lengths = [(length, row) for length, row in found["packing"].items() if length.isdecimal()]
        rows = [[length, *(share(row[name]) for name in ("full", "own", "padded"))] for length, row in lengths]
        head = [
            "conversations of up to",
            "packs of 2,048 tokens are full",
            "packs of that length",
            "padded to that length",
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
        "arithmetic, times the needed",
        "of the matmul limit",
        "peak memory",
        "loss",
    ]
    rows = []
    for way, one in part["ways"].items():
        low, high = one["from_to"]
        trained = "all" if way == "trl" else f"{one['trained_per_second']:.0f}"
        speed = f"{one['tokens_per_second']:.0f} ({low:.0f} to {high:.0f})"
        loss = "another" if way == "trl" else one["loss"]
        rows.append(
            [
                NAMES[way],
                speed,
                trained,
                one["times_usual"],
                f"{one['times_work']:.2f}",
                share(one["share_of_matmul"], 0),
                f"{one['peak_mb'] / 1000:.1f} GB",
                loss,
            ]
        )
    turn = f"{part['conversations']} conversations a turn, {part['mean_length']} tokens on average"
    note = f"{turn}; median of {part['repeats']} turns (lowest to highest)."
    note += "\nTimes are of turns side by side, two or three ways at a time, so not quite the quotients of the medians."
    note += "\nThe share of the matmul limit counts needed arithmetic; times the column before it, all that a way does."
    return table(head, rows) + f"\n{note}\n"


def ablation(part: dict[str, Any]) -> str:
    whole = part["ways"]["ours"]
    rows = [["nothing", f"{whole['tokens_per_second']:.0f}", "1.00", f"{whole['peak_mb'] / 1000:.1f} GB"]]
    for way, name in LEVERS.items():
        if way not in part["ways"]:
            continue
        one = part["ways"][way]
        rows.append(
            [name, f"{one['tokens_per_second']:.0f}", f"{one['times_ours']:.2f}", f"{one['peak_mb'] / 1000:.1f} GB"]
        )
    return table([f"at length {part['length']}, without", "useful tokens/s", "times all levers", "peak memory"], rows)


def share(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def picture(found: dict[str, Any]) -> str:
    """Bars of useful tokens/s, one group a length, as an SVG that a dark page can show too."""
    width, label, line, y = 720, 150, 26, 16
    out = []
    for length in (512, 2048):
        ways = found.get(f"train-{length}", {}).get("ways", {})
        if not ways:
            continue
        most = max(one["tokens_per_second"] for one in ways.values())
        heading = f"conversations of up to {length:,} tokens: useful tokens/s"
        out.append(f'<text x="0" y="{y + 8}" font-weight="bold">{heading}</text>')
        y += line
        for way, one in ways.items():
            speed = one["tokens_per_second"]
            size = round((width - label - 170) * speed / most)
            colour = COLOURS.get(way, "#9ca3af")
            out.append(f'<text x="{label - 8}" y="{y + 10}" text-anchor="end">{escape(SHORT[way])}</text>')
            out.append(f'<rect x="{label}" y="{y - 4}" width="{size}" height="18" rx="2" fill="{colour}"/>')
            out.append(
                f'<text x="{label + size + 8}" y="{y + 10}">{speed:.0f}, {one["times_usual"]:.1f} x the usual</text>'
            )
            y += line
        y += line // 2
    style = "text { font: 13px sans-serif; fill: #6b7280 }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}">'
        f"<title>Useful tokens per second of training on a CPU</title><style>{style}</style>{''.join(out)}</svg>\n"
    )
