"""Merge an adapter into its base on the CPU, tensor by tensor, check the logits, and export for other programs."""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.config import Config
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST, atomic_folder, check_folder
from recipe.core.manifest import check_inputs, check_intact, completed, hash_inputs, read_manifest, write_manifest
from recipe.core.run import Run
from recipe.core.text import say, show

if TYPE_CHECKING:
    from recipe.checkpoints.adapter import Delta

STAGE = "merge"
TOLERANCE = 0.02  # logits of an fp16 merge may differ by its rounding; measured relative to the spread of the logits
TARGETS = (
    "hf",
    "meta",
    "gguf",
    "gguf-q8_0",
    "gguf-q5_1",
    "gguf-q5_0",
    "gguf-q4_1",
    "gguf-q4_0",
    "gguf-lora",
)


@dataclass(frozen=True)
class Merge:
    """A base, an adapter, and the folder of the merged weights; other formats go into folders beside it."""

    name: str
    base: Path
    adapter: Path
    output: Path
    template: str
    inputs: Mapping[str, Path]
    config: Config | None = None  # of the run that trained the adapter
    split: bool = False  # GGUF in several files

    @classmethod
    def of_run(cls, config: Config, folder: Path) -> "Merge":
        """The merge of a finished run. Raises RecipeError if its files or its base have changed."""
        run, base = Run(folder), Path(config.base.path)
        for artefact in (base, folder):
            check_intact(artefact)
        check_inputs(folder, {"base": base})
        inputs = {"base": base, "run": folder}
        return cls(config.name, base, run.adapter, run.merged(), config.corpus.template, inputs, config)

    @classmethod
    def of_folders(cls, base: Path, adapter: Path, output: Path, template: str) -> "Merge":
        """The merge of an adapter that another program trained."""
        check_intact(base)
        return cls(output.name, base, adapter, output, template, {"base": base, "adapter": adapter})

    def path(self, to: str) -> Path:
        """The folder of one format."""
        return self.output if to == "hf" else self.output.with_name(f"{self.output.name}-{to}")

    def deltas(self) -> "dict[str, Delta]":
        """Weight name -> (scaled B [out, r], A [r, in])."""
        from recipe.checkpoints.adapter import read_deltas
        from recipe.model.adapter import check_adapter

        if self.config:
            check_adapter(self.adapter)
        return read_deltas(self.adapter)


def run(config: Config, folder: Path, to: str) -> dict[str, Any]:
    """Leave the format `to` of a finished run beside its other files; the manifest. See `merge`."""
    return merge(Merge.of_run(config, folder), to)


def merge(job: Merge, to: str) -> dict[str, Any]:
    """hf: weights that plain transformers loads. meta, gguf...: exported from those. gguf-lora: the adapter alone.

    Raises RecipeError: an adapter of another base, a sum that fp16 cannot hold, logits that differ from those of base
    plus adapter, a tokenizer that the format cannot express.
    """
    if to == "gguf-lora":
        return export(job, to, hash_inputs(job.inputs), {})
    merged = merge_hf(job)
    if to == "hf":
        return merged
    return export(job, to, hash_inputs({"merged": job.output}), merged["results"])


def merge_hf(job: Merge) -> dict[str, Any]:
    """Base and adapter -> `job.output`, checked against base plus adapter before it takes its place.

    The adapter is added to the base's own weights, not to the int8 ones that it was trained on: the validation loss is
    lower so, measured in tests/bench/results/exports.json.
    """
    from recipe.checkpoints.merging import write_merged

    inputs, settings = hash_inputs(job.inputs), {"to": "hf", "template": job.template}
    if manifest := completed(job.output, STAGE, settings, inputs):
        say(f"{job.output} is already merged (manifest verified)")
        return manifest
    check_folder(job.output, STAGE)
    deltas = job.deltas()
    with atomic_folder(job.output) as partial:
        write_merged(job.base, deltas, partial)
        copy_settings(job, partial)
        say("compare the logits with those of base plus adapter, one layer in memory at a time")
        error = logit_error(job, deltas, partial)
        if not error <= TOLERANCE:
            raise RecipeError(
                f"the merged logits differ from base plus adapter by {error:.3g} of their spread, expected at most "
                f"{TOLERANCE}; nothing was written: merge a base of dtype fp32 instead"
            )
        write_card(job, partial, error)
        return write_manifest(partial, STAGE, settings, inputs, {"logit_error": error})


def export(job: Merge, to: str, inputs: Mapping[str, str], results: Mapping[str, Any]) -> dict[str, Any]:
    """The merged weights, or the adapter, in the format of another program; the manifest."""
    from transformers import LlamaConfig

    from recipe.checkpoints import export as to_others
    from recipe.checkpoints import gguf_out
    from recipe.checkpoints.safetensors import SHARD_BYTES

    split = job.split and to.startswith("gguf") and to != "gguf-lora"
    output, settings = job.path(to), {"to": to, "template": job.template} | ({"split": True} if split else {})
    if manifest := completed(output, STAGE, settings, inputs):
        say(f"{output} is already exported (manifest verified)")
        return manifest
    check_folder(output, STAGE)
    kind = to.removeprefix("gguf").removeprefix("-") or "f16"
    with atomic_folder(output) as partial:
        file = partial / f"{job.name}-{kind}.gguf"
        if to == "meta":
            to_others.to_meta(job.output, partial)
        elif to == "gguf-lora":
            config = LlamaConfig.from_pretrained(str(job.base), local_files_only=True)
            gguf_out.write_adapter(job.deltas(), config, file, chat_template(job))
        else:
            gguf_out.write(job.output, file, kind, chat_template(job), end_id(job), SHARD_BYTES if split else 0)
            if not split:  # Ollama reads one file
                write_modelfile(job, partial, f"./{file.name}")
        return write_manifest(partial, STAGE, settings, inputs, results)


def copy_settings(job: Merge, output: Path) -> None:
    """The base's configs and tokenizer, with the template of the run in them."""
    from recipe.checkpoints import hf_config, safetensors
    from recipe.conversations.templates.export import write_chat_template, write_marked_template
    from recipe.conversations.tokens import end_ids
    from recipe.model.load import load_tokenizer

    for name in read_manifest(job.base)["outputs"]:
        if not name.endswith(".safetensors") and name not in (safetensors.INDEX, "README.md", "Modelfile"):
            shutil.copyfile(job.base / name, output / name)
    write_chat_template(output, job.template)
    write_marked_template(output, job.template)
    hf_config.add_end_tokens(output, end_ids(load_tokenizer(job.base), job.template))
    write_modelfile(job, output, ".")


def chat_template(job: Merge) -> str:
    """The Jinja text of the run's template, as the base's tokenizer needs it."""
    from recipe.conversations import templates
    from recipe.conversations.tokens import begins_with_bos
    from recipe.model.load import load_tokenizer

    return templates.chat_template(job.template, bos=begins_with_bos(load_tokenizer(job.base)))


def end_id(job: Merge) -> int | None:
    """The token that ends an answer of the run's template, if it is not the tokenizer's EOS."""
    from recipe.conversations.tokens import end_ids
    from recipe.model.load import load_tokenizer

    ids = end_ids(load_tokenizer(job.base), job.template)
    return ids[0] if ids[1:] else None


def write_modelfile(job: Merge, output: Path, weights: str) -> None:
    """The file from which `ollama create` makes a model; `weights` is a path relative to it."""
    from recipe.conversations import templates
    from recipe.model.load import load_tokenizer
    from recipe.reports import modelfile

    tokenizer = load_tokenizer(job.base)
    specials = {"bos": str(tokenizer.bos_token or ""), "eos": str(tokenizer.eos_token)}
    text = modelfile.render(templates.get(job.template), weights, specials)
    (output / "Modelfile").write_text(text, encoding="utf-8")


def write_card(job: Merge, output: Path, error: float) -> None:
    """The model card, from the manifests of the run, its base and its corpus."""
    from recipe.reports import model_card

    corpus = evaluation = None
    settings: dict[str, object] = {"adapter": job.adapter.name}
    if job.config:
        lora, run_folder = job.config.lora, job.inputs["run"]
        settings = {"LoRA": f"rank {lora.rank}, alpha {lora.alpha}, on {', '.join(lora.target_modules)}"}
        settings["base while training"] = job.config.base.precision
        corpus = manifest_of_corpus(Path(job.config.corpus.path), read_manifest(run_folder)["inputs"].get("corpus"))
        evaluation = evaluation_of_run(Run(run_folder))
    card = model_card.render(job.name, read_manifest(job.base), settings, job.template, corpus, evaluation, error)
    (output / "README.md").write_text(card, encoding="utf-8")


def manifest_of_corpus(folder: Path, expected: str | None) -> dict[str, Any] | None:
    """The manifest of the corpus that the run was trained on, if it is still there."""
    if not (folder / MANIFEST).is_file() or hash_inputs({"corpus": folder})["corpus"] != expected:
        return None
    return read_manifest(folder)


def evaluation_of_run(run: Run) -> dict[str, Any] | None:
    """eval.json, if it is of this run as it is now."""
    if (result := run.evaluation()) is None:
        return None
    same = result["provenance"]["inputs"]["run"] == hash_inputs({"run": run.folder})["run"]
    return result if same else None


def logit_error(job: Merge, deltas: "Mapping[str, Delta]", merged: Path) -> float:
    """Largest difference between merged and base-plus-adapter logits over one prompt, over the logits' deviation."""
    from transformers import LlamaConfig

    from recipe.checkpoints.safetensors import open_folder
    from recipe.conversations.messages import Message
    from recipe.conversations.tokens import prompt_ids
    from recipe.model.load import load_tokenizer
    from recipe.model.stream import stream_logits

    question = Message("user", "Explain in one sentence what a merge check is for.")
    ids = prompt_ids(load_tokenizer(job.base), job.template, [question])
    config = LlamaConfig.from_pretrained(str(job.base), local_files_only=True)
    expected = stream_logits(config, open_folder(job.base), ids, deltas)
    return float((stream_logits(config, open_folder(merged), ids) - expected).abs().max() / expected.std())


def plan(args: argparse.Namespace) -> Merge:
    """What the flags name: a run, or a base and an adapter of another program."""
    others = (args.base, args.adapter, args.output)
    if not any(others):
        config, opened = load_run(args)
        return Merge.of_run(config, opened.folder)
    if not all(others) or args.run or args.config:
        raise UsageError("pass --run or --config for a run, or --base, --adapter and --output for an adapter of others")
    return Merge.of_folders(args.base, args.adapter, args.output, args.template)


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.merge --run runs/demo/latest --to gguf-q8_0")
    add_run(parser)
    parser.add_argument("--to", choices=TARGETS, default="hf", help="the format to write (default hf)")
    parser.add_argument("--base", type=Path, metavar="DIR", help="converted weights, for an adapter of another program")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a folder of peft or alpaca-lora, with --base")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the merged weights, with --adapter")
    parser.add_argument("--template", default="vicuna_v1.1", help="the chat template that --adapter was trained with")
    parser.add_argument(
        "--split", action="store_true", help="GGUF in files of at most 2 GB, which llama.cpp reads and Ollama does not"
    )
    args = parser.parse_args(argv)
    job = dataclasses.replace(plan(args), split=args.split)
    output = job.path(args.to)
    if args.dry_run:
        from recipe.checkpoints.safetensors import weight_files

        shards = [file.name for file in weight_files(job.base)]
        show({"output": str(output), "shards": shards}, f"would merge {len(shards)} shards -> {output}", args.json)
        return 0
    manifest = merge(job, args.to)
    text = f"wrote {output}"
    if "logit_error" in manifest["results"]:
        text += f" (logits within {manifest['results']['logit_error']:.1e} of base plus adapter)"
    if args.to == "hf":
        text += f"\nnext: python -m recipe.chat --model {output}"
    if "run" in job.inputs:
        text += f"\nits validation loss: python -m recipe.evaluate --run {job.inputs['run']} --exports"
    show(manifest, text, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
