"""A run's folder, `runs/<name>/<id>`: every name inside it, its beginning, and `latest`.

runs/<name>/latest -> <id>
runs/<name>/<id>/
  config.toml manifest.json metrics.jsonl tensorboard/ matmul.json failed_batch.json
  checkpoints/checkpoint-*/  adapter/  merged/  merged-<format>/
  eval.json  eval-losses.jsonl  samples.md  exports.json  comparisons.jsonl  vote.html  votes.json
  report.html  report.md
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST, atomic_file, lock_file
from recipe.core.manifest import build_manifest, check_file, hash_files, read_manifest, save_manifest

LATEST = "latest"
RECORDS = "records.json"  # hashes of the files of a run that differ between machines: paths, times
SCORES = ("loss", "perplexity", "bits_per_byte")  # of each model in eval.json
EVAL_PARTS = ".eval-parts.jsonl"
# when training ends; evaluation adds its own
RECORDED = ("config.toml", "metrics.jsonl", "tensorboard", "matmul.json", "failed_batch.json")


def quantized_folder(base: Path, precision: str) -> Path:
    """The quantized copy of converted weights, beside them: weights/llama-7b-int8."""
    base = Path(base)
    return base.with_name(f"{base.name}-{precision}")


@dataclass(frozen=True)
class Run:
    """The folder of one run, whether or not it exists yet."""

    folder: Path

    @classmethod
    def of(cls, config: Config, run_id: str) -> "Run":
        """The folder of the run of `config` with this id."""
        return cls(Path(config.runs) / config.name / run_id)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """An existing run; `path` may be the `latest` link. Raises UsageError where `path` is not a run."""
        if not (path / "config.toml").is_file():
            raise UsageError(
                f"{path} is not a run (it has no config.toml): train one first, or pass --run runs/<name>/latest"
            )
        return cls(Path(os.path.relpath(path.resolve())))

    @classmethod
    def latest(cls, config: Config) -> Path:
        """The link to the newest run of this name. It may not exist."""
        return Path(config.runs) / config.name / LATEST

    @property
    def short(self) -> Path:
        """A path to type: the `latest` link if it points here, else the folder."""
        link = self.folder.with_name(LATEST)
        return link if link.is_symlink() and link.resolve() == self.folder.resolve() else self.folder

    @property
    def config_file(self) -> Path:
        return self.folder / "config.toml"

    @property
    def manifest_file(self) -> Path:
        return self.folder / MANIFEST

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """The rows of `metrics` for TensorBoard. The usual name of such a file has a time and the host's name in it."""
        return self.folder / "tensorboard" / "events.out.tfevents.run"

    @property
    def failed_batch(self) -> Path:
        """The conversations of the step that ended the run, if one did."""
        return self.folder / "failed_batch.json"

    @property
    def matmul(self) -> Path:
        """The accumulation dtype chosen per layer shape."""
        return self.folder / "matmul.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.folder / ".lock"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def eval_json(self) -> Path:
        return self.folder / "eval.json"

    @property
    def exports(self) -> Path:
        """The validation loss of the model in every format."""
        return self.folder / "exports.json"

    @property
    def samples(self) -> Path:
        return self.folder / "samples.md"

    @property
    def eval_losses(self) -> Path:
        """The losses of every validation conversation, a line each."""
        return self.folder / "eval-losses.jsonl"

    @property
    def eval_parts(self) -> Path:
        """Finished parts of an evaluation, each verified by its own digest."""
        return self.folder / EVAL_PARTS

    @property
    def comparisons(self) -> Path:
        """Pairs of answers, blind, for people or a judge model."""
        return self.folder / "comparisons.jsonl"

    @property
    def vote_page(self) -> Path:
        """The page on which a person compares the answers."""
        return self.folder / "vote.html"

    @property
    def votes(self) -> Path:
        """The result of the votes."""
        return self.folder / "votes.json"

    def merged(self, to: str = "hf") -> Path:
        """The merged weights in the format `to`."""
        return self.folder / ("merged" if to == "hf" else f"merged-{to}")

    def exported(self) -> list[Path]:
        """The folders of the formats that exist beside `merged`, by name."""
        return sorted(path for path in self.folder.glob("merged-*") if (path / MANIFEST).is_file())

    def config(self, overrides: dict[str, object] | None = None) -> Config:
        """The resolved config that the run left, with `overrides` applied."""
        return configs.load(self.config_file, overrides)

    def records(self) -> dict[str, Any]:
        """File -> hash and size, as recorded when training and evaluation ended; empty if nothing is recorded.

        Raises RecipeError if they are damaged.
        """
        file = self.folder / RECORDS
        if not file.is_file():
            return {}
        try:
            return dict(read_manifest(self.folder, RECORDS)["outputs"])
        except RecipeError:
            raise RecipeError(
                f"{file} is damaged: restore a copy of it, or remove it, eval.json and exports.json and evaluate again"
            ) from None

    def record(self, *names: str) -> None:
        """Record the hashes of these files, where they exist; what is recorded of others stays.

        Raises RecipeError if that is damaged.
        """
        busy = f"another process writes {self.folder / RECORDS}: run the same command again"
        with lock_file(self.folder / ".records.lock", busy, wait=10):  # a report may end beside an evaluation
            outputs = self.records() | hash_files(self.folder, names)
            save_manifest(self.folder / RECORDS, build_manifest("records", {}, {}, {}, outputs))

    def check_recorded(self, name: str) -> None:
        """Raises RecipeError if the file is not as recorded."""
        for problem in records_problems(self.folder, name):
            raise RecipeError(f"{problem}; restore it, or run the stage that wrote it again")

    def evaluation(self) -> dict[str, Any] | None:
        """The content of eval.json; None if the run was not evaluated.

        Raises RecipeError if it is not as recorded, or has another shape than this version writes.
        """
        if not self.eval_json.is_file():
            return None
        if self.eval_json.name not in self.records():
            raise RecipeError(
                f"{self.eval_json} is not in {self.folder / RECORDS}, so its numbers may be anyone's: run "
                f"`python -m recipe.evaluate --run {self.short}` again"
            )
        self.check_recorded(self.eval_json.name)
        try:
            result: dict[str, Any] = json.loads(self.eval_json.read_text(encoding="utf-8"))
            numbers = [result[model][key] for model in ("base", "tuned") for key in SCORES]
            texts = [answer[key] for answer in result["answers"] for key in ("question", "base", "tuned")]
            texts.append(result["provenance"]["inputs"]["run"])
        except (ValueError, KeyError, TypeError, RecursionError):
            numbers, texts = [""], []
        if not all(type(number) is float for number in numbers) or not all(isinstance(text, str) for text in texts):
            raise RecipeError(f"{self.eval_json} is not an evaluation of this version: remove it and evaluate again")
        return result

    def begin(self, config: Config) -> None:
        """Write the resolved config, which replays the run, and point `latest` here."""
        with atomic_file(self.config_file) as file:
            file.write(configs.dump(config))
        self.point_latest()

    def point_latest(self) -> None:
        """runs/<name>/latest -> this run, replaced in one step."""
        fresh = self.folder.with_name(f".{LATEST}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(self.folder.name)
        os.replace(fresh, self.folder.with_name(LATEST))

    def unfinished_latest(self) -> "Run | None":
        """The run that `latest` points to, if it is another one and has no manifest yet."""
        link = self.folder.with_name(LATEST)
        if not link.exists() or link.resolve() == self.folder.resolve() or (link / MANIFEST).is_file():
            return None
        return Run(link.resolve())


def records_problems(folder: Path, name: str = "") -> list[str]:
    """What no longer matches the records of a run: all of them, or the file `name`. Empty: nothing, or no records."""
    problems: list[str] = []
    for recorded, expected in Run(folder).records().items():
        if not name or recorded == name:
            problems += check_file(Path(folder) / recorded, expected)
    return problems
