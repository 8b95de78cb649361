"""The README.md of merged weights: what they were made from, how they are asked, what was measured and what was not."""

from collections.abc import Mapping
from typing import Any

from recipe.core.text import printable

UNKNOWN = "unknown"


def render(
    name: str,
    base: Mapping[str, Any],
    settings: Mapping[str, Any],
    template: str,
    corpus: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
    logit_error: float,
) -> str:
    """The card as Markdown, with the metadata block that model hubs read.

    base: the manifest of the converted base. settings: rows of the adapter's table. corpus: the manifest of the
    training data, None where it was not at hand. evaluation: eval.json, None where the run was not evaluated.
    """
    licence = base["results"].get("licence", UNKNOWN)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [llama, lora, conversational]",
        "---",
        f"# {_cell(name)}",
        "",
        "A LLaMA model with a LoRA adapter merged into its weights. `manifest.json` has the hash of every file.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base | {_base(base)} |",
    ]
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in settings.items()]
    lines += [f"| chat template | `{_code(template)}`, in `tokenizer_config.json` |", "", "## Licence", ""]
    lines += [
        f"The base: {_cell(licence)}. These weights are derived from it, and the licences of the training data may add "
        "conditions; neither was checked for you.",
        "",
        "## Training data",
        "",
        *_data(corpus),
        "",
        "## Measured",
        "",
        *_measured(evaluation),
        f"- Logits of these weights differ from those of base plus adapter by at most {logit_error:.1e} of their "
        "spread on one prompt.",
        "",
        "## Not measured",
        "",
        "- Factual accuracy, safety, bias and refusals. Do not rely on the answers.",
        "- Languages and tasks that the validation conversations do not contain.",
    ]
    return "\n".join(lines) + "\n"


def _base(base: Mapping[str, Any]) -> str:
    results = base["results"]
    known = results.get("published") or results.get("kind", UNKNOWN)
    hashes = ", ".join(f"`{_code(file)}` sha256 `{sha256[:16]}`" for file, sha256 in sorted(base["inputs"].items())[:8])
    return f"{_cell(known)}; {hashes}"


def _data(corpus: Mapping[str, Any] | None) -> list[str]:
    if corpus is None:
        return ["The corpus was not at hand when this card was written; the run's manifest has its hash."]
    return [f"- `{_code(name)}`: sha256 `{sha256}`" for name, sha256 in sorted(corpus["inputs"].items())]


def _measured(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return ["- The run was not evaluated before the merge: no loss is known."]
    lines = ["| | base | tuned |", "| --- | --- | --- |"]
    for key, title in (("loss", "validation loss"), ("perplexity", "perplexity"), ("bits_per_byte", "bits per byte")):
        lines.append(f"| {title} | {evaluation['base'][key]:.4f} | {evaluation['tuned'][key]:.4f} |")
    return [*lines, "", "The tuned column is the adapter on the base as it was trained, before the merge.", ""]


def _cell(value: object) -> str:
    """Untrusted text inside a table or a sentence of Markdown: printable, and no markup."""
    text = printable(str(value))
    return "".join(f"\\{character}" if character in "\\|<>[]*_`#" else character for character in text)


def _code(value: object) -> str:
    """Untrusted text between backticks: printable, and no backtick or cell border in it."""
    return printable(str(value)).replace("`", "'").replace("|", "/")
