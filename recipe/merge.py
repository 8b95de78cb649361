"""Merge a run's adapter into its base in fp16 on the CPU, shard by shard, and prove that the logits are the same."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import MANIFEST, atomic_folder
from recipe.core.manifest import check_inputs, check_intact, completed, hash_inputs, write_manifest
from recipe.core.text import progress, say, show

if TYPE_CHECKING:
    import torch

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
        error = logit_error(load_tokenizer(base), base, adapter, partial)
        if not error <= TOLERANCE:
            raise RecipeError(
                f"the merged logits differ from base plus adapter by {error:.3g} of their spread, expected at most "
                f"{TOLERANCE}; nothing was written: merge a base of dtype fp32 instead"
            )
        return write_manifest(partial, STAGE, settings, inputs, {"logit_error": error})


def adapter_deltas(adapter: Path) -> dict[str, tuple["torch.Tensor", "torch.Tensor"]]:
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


def write_merged(base: Path, deltas: Mapping[str, tuple[Any, Any]], output: Path) -> None:
    """Copy the base with W + BA in place of W: summed in fp32, stored in the base's dtype, one shard in memory."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from recipe.model.load import weight_files

    left = set(deltas)
    for file in progress(weight_files(base), desc="merge", unit=" shards"):
        with safe_open(file, framework="pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
        for name in left & tensors.keys():
            b, a = deltas[name]
            merged = (tensors[name].float() + b @ a).to(tensors[name].dtype)
            if not torch.isfinite(merged).all():
                raise RecipeError(
                    f"{name} overflows fp16 once merged; convert the base with --dtype fp32 and merge again"
                )
            tensors[name] = merged
        left -= tensors.keys()
        save_file(tensors, output / file.name, metadata={"format": "pt"})
    if left:
        raise RecipeError(f"the adapter has a layer {min(left)} that {base} lacks; it belongs to another base")
    for file in sorted(base.iterdir()):
        if file.suffix != ".safetensors" and file.name != MANIFEST and file.is_file():
            shutil.copyfile(file, output / file.name)


def logit_error(tokenizer: Any, base: Path, adapter: Path, merged: Path) -> float:
    """Largest difference between merged and base-plus-adapter logits over one prompt, over the logits' deviation."""
    from recipe.conversations.messages import Message
    from recipe.conversations.tokens import prompt_ids

    ids = prompt_ids(tokenizer, "vicuna_v1.1", [Message("user", "Explain in one sentence what a merge check is for.")])
    expected = stream_logits(base, ids, adapter_deltas(adapter))
    return float((stream_logits(merged, ids) - expected).abs().max() / expected.std())


def stream_logits(path: Path, ids: list[int], deltas: Mapping[str, tuple[Any, Any]] | None = None) -> "torch.Tensor":
    """fp32 logits [tokens, vocabulary] of transformers' own model, its weights read from disk layer by layer.

    With `deltas` every adapted layer adds its low-rank product beside the base weight, as a LoRA does: the weights are
    never merged. Memory: one decoder layer (or the embedding) in fp32, whatever the size of the model.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(str(path), local_files_only=True)
    config._attn_implementation = "eager"
    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(config).eval()
    read = tensor_reader(path)
    stations = [model.model.embed_tokens, *model.model.layers, model.model.norm, model.lm_head]
    names = {module: name for name, module in model.named_modules()}
    for station in stations:
        _stream(station, names[station], read, deltas or {}, bool(config.tie_word_embeddings))
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def tensor_reader(path: Path) -> Callable[[str], "torch.Tensor"]:
    """A function that reads one tensor of a folder of safetensors by name, as fp32."""
    from safetensors import safe_open

    from recipe.model.load import weight_files

    where: dict[str, Path] = {}
    for file in weight_files(path):
        with safe_open(file, framework="pt") as shard:
            where.update(dict.fromkeys(shard.keys(), file))

    def read(name: str) -> "torch.Tensor":
        with safe_open(where[name], framework="pt") as shard:
            return shard.get_tensor(name).float()

    return read


def _stream(station: Any, prefix: str, read: Any, deltas: Mapping[str, tuple[Any, Any]], tied: bool) -> None:
    """Give `station` its weights just before it runs and take them away after."""
    import torch

    def parameters() -> Iterator[tuple[Any, str, str]]:
        for inner, module in station.named_modules():
            for leaf, _ in module.named_parameters(recurse=False):
                yield module, leaf, ".".join(part for part in (prefix, inner, leaf) if part)

    def fill(*_: Any) -> None:
        for module, leaf, name in list(parameters()):
            source = "model.embed_tokens.weight" if tied and name == "lm_head.weight" else name
            setattr(module, leaf, torch.nn.Parameter(read(source), requires_grad=False))

    def empty(*_: Any) -> None:
        for module, leaf, _name in list(parameters()):
            setattr(module, leaf, torch.nn.Parameter(getattr(module, leaf).to("meta"), requires_grad=False))

    def add_lora(b: Any, a: Any) -> Callable[..., Any]:
        return lambda module, inputs, output: output + (inputs[0] @ a.t()) @ b.t()

    station.register_forward_pre_hook(fill)
    station.register_forward_hook(empty)
    for module, _leaf, name in list(parameters()):
        if name in deltas:
            module.register_forward_hook(add_lora(*deltas[name]))


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.merge --run runs/demo/latest --to hf")
    add_run(parser)
    parser.add_argument("--to", choices=("hf", "meta", "gguf"), default="hf", help="the format to leave (default hf)")
    args = parser.parse_args(argv)
    config, opened = load_run(args)
    folder = opened.folder
    output = folder / ("merged" if args.to == "hf" else f"merged-{args.to}")
    if args.dry_run:
        shards = [file.name for file in sorted(Path(config.base.path).glob("*.safetensors"))]
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
