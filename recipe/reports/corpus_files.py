"""The report files of a corpus, and of one of which nothing is left."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from recipe.conversations.pipeline import stats
from recipe.conversations.samples import render_sample
from recipe.conversations.tokens import visible
from recipe.core.config import Corpus
from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST, atomic_folder
from recipe.core.manifest import read_manifest, write_manifest
from recipe.reports import corpus_html
from recipe.reports.corpus import markdown

DROPPED = "corpus-dropped"  # the stage in the manifest of a folder with an account of drops alone


def write_reports(
    folder: Path, results: dict[str, Any], settings: dict[str, Any], corpus: Corpus, tokenizer: Any
) -> None:
    """report.md, and report.html with samples."""
    (folder / "report.md").write_text(markdown(results, settings), encoding="utf-8")
    shown = {
        title: [
            (sample["id"], sample["source"], visible(tokenizer, render_sample(corpus.template, sample)))
            for sample in samples
        ]
        for title, samples in stats.notable(folder / "train.jsonl", corpus.seed).items()
    }
    (folder / "report.html").write_text(corpus_html.html(results, settings, shown), encoding="utf-8")


def keep_account(
    corpus: Path, partial: Path, settings: dict[str, Any], inputs: dict[str, str], results: dict[str, Any]
) -> Path:
    """Where nothing is left to train on: report.md and the rejected records, in a folder beside the corpus."""
    folder = account_folder(corpus)
    with atomic_folder(folder) as out:
        for name in ("rejected.jsonl", "changed.jsonl"):
            shutil.copyfile(partial / name, out / name)
        (out / "report.md").write_text(markdown(results, settings), encoding="utf-8")
        write_manifest(out, DROPPED, settings, inputs, results)
    return folder


def account_folder(corpus: Path) -> Path:
    """The folder of `keep_account`."""
    return corpus.with_name(f"{corpus.name}-dropped")


def remove_account(corpus: Path) -> None:
    """Remove what an earlier attempt left where nothing was left to train on."""
    folder = account_folder(corpus)
    with contextlib.suppress(RecipeError):  # not a manifest of this recipe: a person's folder
        if (folder / MANIFEST).is_file() and read_manifest(folder)["stage"] == DROPPED:
            shutil.rmtree(folder)
