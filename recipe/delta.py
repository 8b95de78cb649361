"""Apply delta weights to a base, or make them from a base and a tuned model, tensor by tensor."""

import argparse
import sys
from pathlib import Path
from typing import Any

from recipe.core.cli import entry
from recipe.core.files import atomic_folder, check_folder
from recipe.core.manifest import completed, hash_inputs, write_manifest
from recipe.core.text import say, show

STAGE = "delta"


def run(action: str, base: Path, other: Path, output: Path, dtype: str) -> dict[str, Any]:
    """apply: `base` + `other` (a delta); make: `other` (a tuned model) - `base`. Writes a converted folder.

    Both may be in any format that `convert` reads. Returns the manifest. Raises RecipeError: they do not belong
    together, too little disk, a value that fp16 cannot hold.
    """
    from recipe.checkpoints import delta
    from recipe.checkpoints.conversion import Conversion
    from recipe.checkpoints.files import check_disk, check_listed
    from recipe.checkpoints.open import open_source

    sources = {"base": open_source(base), "other": open_source(other)}
    combined = (delta.apply if action == "apply" else delta.make)(sources["base"], sources["other"])
    plan = Conversion.of_source(combined, other, dtype)
    check_folder(output, STAGE)
    check_disk(output, plan.bytes)
    files = {f"{name}/{file.name}": file for name, source in sources.items() for file in source.files}
    settings, inputs = {"action": action, "dtype": dtype}, hash_inputs(files)
    check_listed({file: inputs[name] for name, file in files.items()})
    if manifest := completed(output, STAGE, settings, inputs):
        say(f"{output} already exists (manifest verified)")
        return manifest
    with atomic_folder(output) as partial:
        return write_manifest(partial, STAGE, settings, inputs, plan.write(partial))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m recipe.{STAGE}",
        description=__doc__,
        epilog="example: python -m recipe.delta apply --base weights/raw/llama-7b --other weights/raw/vicuna-delta "
        "--output weights/vicuna-7b",
    )
    parser.add_argument("action", choices=("apply", "make"), help="apply: base + delta; make: tuned - base")
    parser.add_argument("--base", type=Path, required=True, metavar="DIR", help="the base, in any format of `convert`")
    parser.add_argument("--other", type=Path, required=True, metavar="DIR", help="the delta, or the tuned model")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the result")
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="dtype of the result (default fp16)")
    parser.add_argument("--json", action="store_true", help="print the manifest as one JSON object")
    args = parser.parse_args(argv)
    manifest = run(args.action, args.base, args.other, args.output, args.dtype)
    results = manifest["results"]
    text = f"wrote {args.output}: {results['parameters']:,} parameters, {results['bytes'] / 1e9:.2f} GB of {args.dtype}"
    show(manifest, text, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
