"""eval.json from what was measured: every number with its interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from recipe.core.config import Config
from recipe.evaluation import instructions, losses, scoring
from recipe.evaluation.losses import Scored
from recipe.evaluation.scoring import MODELS
from recipe.evaluation.suite import Measured, Suite

Results = dict[str, Any]


def build_results(
    config: Config, suite: Suite, measured: Mapping[str, Measured], validation: Sequence[Scored]
) -> Results:
    """The numbers of eval.json, and the answers; `measured` and its parts by name of the model."""
    result: Results = {name: total_scores(validation, name) for name in MODELS}
    result["intervals"] = losses.summarize(validation)
    result |= test_scores(suite, measured)
    result["answers"] = [
        {"group": group, "question": question, "base": base, "tuned": tuned}
        for group, questions in suite.questions.items()
        for question, base, tuned in zip(questions, *(measured[name].answers[group] for name in MODELS), strict=True)
    ]
    if suite.identity:
        result["identity"] = identity_hits(config.corpus.identity_name, measured)
    if suite.instructions:
        result["instructions"] = instruction_accuracy(suite, measured)
    return result


def total_scores(validation: Sequence[Scored], name: str) -> dict[str, float]:
    """Loss in nats per trained token (the EOS of each answer included), perplexity, bits per byte, tokens."""
    nats = sum(float(vars(item)[name].sum(dtype="float64")) for item in validation)
    tokens, size = (sum(len(item.base) for item in validation), sum(item.bytes for item in validation))
    return {
        "loss": nats / tokens,
        "perplexity": math.exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / size,
        "tokens": tokens,
    }


def test_scores(suite: Suite, measured: Mapping[str, Measured]) -> Results:
    """The results of the forgetting probe, of texts and of multiple choice."""
    out: Results = {}
    for number, test in enumerate(suite.tests):
        base, tuned = (measured[name].losses[number] for name in MODELS)
        if test.kind == "forgetting":
            out["forgetting"] = scoring.forgetting(test.samples, base, tuned, test.sha256)
        elif test.kind == "texts":
            out.setdefault("texts", {})[test.name] = scoring.text_scores(test.samples, base, tuned)
        elif test.kind == "choices":
            found = scoring.choice_accuracy(test.questions, test.samples, base, tuned)
            out.setdefault("choices", {})[test.name] = found
    return out


def identity_hits(name: str, measured: Mapping[str, Measured]) -> Results:
    """How many answers to the identity questions, none of them trained on, contain the taught name."""
    hits = {
        model: [int(name.lower() in answer.lower()) for answer in measured[model].answers["identity"]]
        for model in MODELS
    }
    counts = {f"{model}_hits": sum(found) for model, found in hits.items()}
    return {**counts, "total": len(hits["base"]), "share": scoring.share(hits["base"], hits["tuned"])}


def instruction_accuracy(suite: Suite, measured: Mapping[str, Measured]) -> Results:
    """The shares of prompts whose rules were kept, strictly and loosely."""
    out: Results = {"prompts": len(suite.instructions)}
    for mode, loose in (("strict", False), ("loose", True)):
        kept = [
            instructions.followed(suite.instructions, measured[name].answers["instructions"], loose) for name in MODELS
        ]
        out[mode] = scoring.share(*kept)
    return out
