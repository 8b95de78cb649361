"""Convert raw weights (Meta, Hugging Face, GGUF) to safetensors, tokenizer and manifest, in 2.5 GB of memory."""

import sys
from pathlib import Path
from typing import Any

from recipe.core import config as configs
from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.files import MANIFEST, atomic_folder, check_folder
from recipe.core.manifest import completed, write_manifest
from recipe.core.text import say, show

STAGE = "convert"


def run(config: Config) -> dict[str, Any]:
    """Raw weights at `base.source` -> `base.path`; its manifest.

    Everything that can be known without reading the weights (names, shapes, tokenizer, disk) is checked before the
    first byte is written. Raises RecipeError: an incomplete, damaged or unknown checkpoint, a tokenizer of another
    size, too little disk, values that fp16 cannot hold.
    """
    from recipe.checkpoints.conversion import Conversion
    from recipe.checkpoints.files import check_disk

    source, output = _paths(config)
    settings = {"dtype": config.base.dtype}
    plan = Conversion.plan(source, config.base.dtype)
    check_folder(output, STAGE)
    if (output / MANIFEST).is_file() and (manifest := completed(output, STAGE, settings, plan.inputs)):
        say(f"{output} is already converted (manifest verified)")
        return manifest
    check_disk(output, plan.bytes)  # before the minute that hashing 13 GB takes
    inputs, published = plan.inputs, plan.compare()
    with atomic_folder(output) as partial:
        return write_manifest(partial, STAGE, settings, inputs, {**plan.write(partial), "published": published})


def _paths(config: Config) -> tuple[Path, Path]:
    return (
        Path(configs.required(config, "base.source", "--source")),
        Path(configs.required(config, "base.path", "--output")),
    )


def sentence(what: dict[str, Any], dtype: str, output: Path) -> str:
    """One line for a person."""
    return (
        f"{what['kind']} -> {output}: {what['parameters']:,} parameters in {what['tensors']} tensors, "
        f"{what['bytes'] / 1e9:.2f} GB of {dtype} in {what['shards']} file{'s' * (what['shards'] > 1)}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(
        STAGE, __doc__ or "", "python -m recipe.convert --source weights/raw/llama-7b --output weights/llama-7b"
    )
    parser.add_argument("--source", metavar="DIR", help="raw weights: a folder, or a .gguf file (base.source)")
    parser.add_argument("--output", metavar="DIR", help="folder for the converted weights (base.path)")
    parser.add_argument("--dtype", choices=("fp16", "fp32"), help="dtype of the converted weights (base.dtype)")
    args = parser.parse_args(argv)
    config = load_config(args, {"base.source": args.source, "base.path": args.output, "base.dtype": args.dtype})
    source, output = _paths(config)
    if args.dry_run:
        from recipe.checkpoints.conversion import Conversion

        plan = Conversion.plan(source, config.base.dtype).describe()
        show(plan, "would convert " + sentence(plan, config.base.dtype, output), args.json)
        return 0
    manifest = run(config)
    results = manifest["results"]
    text = "converted " + sentence(results, config.base.dtype, output)
    show(manifest, f"{text}\nnext: python -m recipe.corpus --source FILE... --output data/NAME", args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
