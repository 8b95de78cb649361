"""The corpus build: from a resolved plan to train.jsonl and val.jsonl."""

import os
import time
from pathlib import Path
from typing import Any

from recipe.conversations import identity
from recipe.conversations.formats import detect
from recipe.conversations.pipeline import shards, workers
from recipe.conversations.pipeline.counting import TokenCounter
from recipe.conversations.pipeline.resolve import Plan
from recipe.conversations.pipeline.shards import Shard, ShardConfig
from recipe.conversations.pipeline.write import write_corpus
from recipe.conversations.tokens import check_template, encoders
from recipe.core.errors import RecipeError
from recipe.core.files import check_unchanged
from recipe.core.text import progress, snippet


def build_corpus(plan: Plan, output: Path, work: Path) -> tuple[dict[str, Any], Any]:
    """Write train.jsonl, val.jsonl and the lists of what was rejected or changed into `output`.

    Returns (what the manifest records and the reports show, the tokenizer). Finished shards are kept in `work`, so that
    an interrupted build resumes. Raises RecipeError for a source that cannot be read or changes while it is read,
    NothingLeftError where no sample is left.
    """
    for source in plan.sources:
        detect.check(source.path, source.format)
    if plan.corpus.processes != 1 and not plan.corpus.cluster:
        workers.start_fork_server()
    tokenizer = load_tokenizer(plan.base)
    check_template(tokenizer, plan.corpus.template)
    count = prepare(plan, work, tokenizer)
    check_unchanged(plan.stamps)
    return write_corpus(plan, output, work, count, tokenizer), tokenizer


def load_tokenizer(base: Path) -> Any:
    """The base's tokenizer, without its weights and without loading torch.

    Read from tokenizer.json: the ids equal those of the class that its config names, in half the time. Raises
    RecipeError if it is damaged.
    """
    from transformers import PreTrainedTokenizerFast, logging

    logging.set_verbosity_error()  # it would warn of the other class's name
    try:
        return PreTrainedTokenizerFast.from_pretrained(base, local_files_only=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # of any class: a panic of the tokenizers library is not even an Exception
        raise RecipeError(f"{base} has no readable tokenizer ({snippet(error)}): convert the base again") from None


def prepare(plan: Plan, work: Path, tokenizer: Any) -> int:
    """Prepare every source in shards, with a progress bar. Returns the number of shards."""
    corpus = plan.corpus
    name = corpus.identity_name
    generated = identity.training(name, corpus.identity_organisation) if name else []
    config = ShardConfig(TokenCounter(encoders(tokenizer)), corpus, plan.prompts())
    sizes = [source.size() for source in plan.sources]
    before = {source.name: sum(sizes[:index]) for index, source in enumerate(plan.sources)}
    started, read = time.monotonic(), 0
    with progress(total=sum(sizes), unit="B", unit_scale=True, desc="prepare") as bar:

        def report(shard: Shard, count: int) -> None:
            nonlocal read
            read += count
            bar.set_postfix_str(f"{read / (time.monotonic() - started):,.0f} conversations/s", refresh=False)
            bar.update(max(0, min(bar.total, before.get(shard.source.name, 0) + shard.end) - bar.n))

        processes = corpus.processes or len(os.sched_getaffinity(0))
        divided = shards.divide(plan.sources, generated)
        count = 0
        for number in shards.prepare(divided, work, config, processes, report):
            shards.sync(work, number)
            count += 1
        bar.update(bar.total - bar.n)
    return count
