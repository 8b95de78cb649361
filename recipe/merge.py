"""Merge a run's adapter into its base on the CPU, tensor by tensor, and check that the logits are the same."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import atomic_folder
from recipe.core.manifest import check_inputs, check_intact, completed, hash_inputs, read_manifest, write_manifest
from recipe.core.text import progress, say, show

if TYPE_CHECKING:
    import torch

    from recipe.checkpoints.source import LazyTensor
    from recipe.model.stream import Delta

STAGE = "merge"
PREFIX = "base_model.model."  # what peft puts before a module's name
TOLERANCE = 0.02  # logits of an fp16 merge may differ by its rounding; measured relative to the spread of the logits


def run(config: Config, folder: Path, to: str) -> dict[str, Any]:
    """Leave `folder`/merged (to hf) or merged-<to> (meta, gguf); its manifest.

    hf: weights that plain transformers loads. meta, gguf: made from those, for other programs.
    """
    merged = merge_hf(config, folder)
    if to == "hf":
        return merged
    from recipe.checkpoints import export

    source, output = folder / "merged", folder / f"merged-{to}"
    inputs = hash_inputs({"merged": source})
    if manifest := completed(output, STAGE, {"to": to}, inputs):
        say(f"{output} is there already: its manifest holds")
        return manifest
    with atomic_folder(output) as partial:
        if to == "meta":
            export.to_meta(source, partial)
        else:
            export.to_gguf(source, partial / f"{config.name}-f16.gguf")
        return write_manifest(partial, STAGE, {"to": to}, inputs, merged["results"])


def merge_hf(config: Config, folder: Path) -> dict[str, Any]:
    """Base and adapter -> `folder`/merged, checked against base plus adapter before it takes its place."""
    from recipe.model.load import load_tokenizer

    base, adapter, output = Path(config.base.path), folder / "adapter", folder / "merged"
    for artefact in (base, folder):
        check_intact(artefact)
    check_inputs(folder, {"base": base})
    inputs = hash_inputs({"base": base, "run": folder})
    settings = {"to": "hf", "template": config.corpus.template}
    if manifest := completed(output, STAGE, settings, inputs):
        say(f"{output} is there already: its manifest holds")
        return manifest
    deltas = adapter_deltas(adapter)
    with atomic_folder(output) as partial:
        write_merged(base, deltas, partial)
        say("compare the logits with those of base plus adapter, one layer in memory at a time")
        error = logit_error(load_tokenizer(base), config.corpus.template, base, deltas, partial)
        if not error <= TOLERANCE:
            raise RecipeError(
                f"the merged logits differ from base plus adapter by {error:.3g} of their spread, expected at most "
                f"{TOLERANCE}; nothing was written: merge a base of dtype fp32 instead"
            )
        return write_manifest(partial, STAGE, settings, inputs, {"logit_error": error})


def adapter_deltas(adapter: Path) -> dict[str, "Delta"]:
    """Weight name -> (alpha/r * B [out, r], A [r, in]), both fp32, for every layer that has an adapter."""
    from recipe.model.adapter import check_adapter

    tensors = check_adapter(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    scale = settings["lora_alpha"] / settings["r"]
    deltas = {}
    for name, a in tensors.items():
        if ".lora_A." in name:
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            weight = name.removeprefix(PREFIX).replace(".lora_A.weight", ".weight")
            deltas[weight] = (scale * b.float(), a.float())
    return deltas


def write_merged(base: Path, deltas: Mapping[str, "Delta"], output: Path) -> None:
    """Copy the base with W + BA in place of W: summed in fp32, stored in the base's dtype, one tensor in memory."""
    from recipe.checkpoints import safetensors

    shards = [safetensors.library_order(shard.values()) for shard in safetensors.open_shards(base)]
    if unknown := deltas.keys() - {tensor.name for shard in shards for tensor in shard}:
        raise RecipeError(f"the adapter has a layer {min(unknown)} that {base} lacks: it belongs to another base")
    shards = [[merged_tensor(tensor, deltas.get(tensor.name)) for tensor in shard] for shard in shards]
    total = sum(safetensors.size(shard, None) for shard in shards)
    with progress(total=total, unit="B", unit_scale=True, desc="merge") as bar:
        safetensors.write(output, shards, None, bar.update)
    for name in read_manifest(base)["outputs"]:
        if not name.endswith(".safetensors") and name != safetensors.INDEX:
            shutil.copyfile(base / name, output / name)


def merged_tensor(weight: "LazyTensor", delta: "Delta | None") -> "LazyTensor":
    """W + BA once it is read. Raises RecipeError then, where the dtype of W cannot hold a sum."""
    if delta is None:
        return weight

    def read() -> "torch.Tensor":
        b, a = delta
        merged = (weight.read().float() + b @ a).to(weight.dtype)
        if not merged.isfinite().all():
            raise RecipeError(
                f"{weight.name} overflows fp16 once merged: convert the base with --dtype fp32 and merge again"
            )
        return merged

    return dataclasses.replace(weight, read=read)


def logit_error(tokenizer: Any, template: str, base: Path, deltas: Mapping[str, "Delta"], merged: Path) -> float:
    """Largest difference between merged and base-plus-adapter logits over one prompt, over the logits' deviation."""
    from transformers import LlamaConfig

    from recipe.checkpoints.safetensors import open_folder
    from recipe.conversations.messages import Message
    from recipe.conversations.tokens import prompt_ids
    from recipe.model.stream import stream_logits

    ids = prompt_ids(tokenizer, template, [Message("user", "Explain in one sentence what a merge check is for.")])
    config = LlamaConfig.from_pretrained(str(base), local_files_only=True)
    expected = stream_logits(config, open_folder(base), ids, deltas)
    return float((stream_logits(config, open_folder(merged), ids) - expected).abs().max() / expected.std())


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.merge --run runs/demo/latest --to hf")
    add_run(parser)
    parser.add_argument("--to", choices=("hf", "meta", "gguf"), default="hf", help="the format to leave (default hf)")
    args = parser.parse_args(argv)
    config, opened = load_run(args)
    folder = opened.folder
    output = folder / ("merged" if args.to == "hf" else f"merged-{args.to}")
    if args.dry_run:
        from recipe.checkpoints.safetensors import weight_files

        shards = [file.name for file in weight_files(Path(config.base.path))]
        show({"output": str(output), "shards": shards}, f"would merge {len(shards)} shards -> {output}", args.json)
        return 0
    manifest = run(config, folder, args.to)
    error = manifest["results"]["logit_error"]
    text = f"merged -> {output} (logits within {error:.1e} of base plus adapter)"
    if args.to == "hf":
        text += f"\nnext: python -m recipe.chat --model {output}"
    show(manifest, text, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
