"""A conversion: planned and checked before a byte is written, then written."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoints import hf_config, llama, published, safetensors, source
from recipe.checkpoints.files import check_listed
from recipe.checkpoints.open import open_source
from recipe.checkpoints.source import LazyTensor, Source
from recipe.checkpoints.tokenizer import Tokenizer
from recipe.core.files import MANIFEST, check_unchanged, stamp
from recipe.core.manifest import hash_inputs, read_manifest
from recipe.core.text import progress, say


@dataclass(frozen=True)
class Conversion:
    """A checkpoint whose names, shapes and tokenizer are right, and the shards of `dtype` that it becomes."""

    source: Source
    tokenizer: Tokenizer
    dtype: torch.dtype
    shards: list[list[LazyTensor]]
    bytes: int
    licence: str
    stamps: Mapping[Path, Any]  # of the files that it is read from, before they are hashed

    @classmethod
    def plan(cls, path: Path, dtype: str) -> "Conversion":
        """Open and check the checkpoint at `path`; `dtype` is fp16 or fp32. Reads headers, not weights.

        Raises RecipeError: an incomplete, damaged or unknown checkpoint, a tokenizer of another size.
        """
        return cls.of_source(open_source(path), path, dtype)

    @classmethod
    def of_source(cls, opened: Source, path: Path, dtype: str) -> "Conversion":
        """The same of a checkpoint that is open; `path` is what errors name."""
        expected = llama.expected_shapes(opened.config, path)
        source.check_shapes(path, opened.tensors, expected)
        tokenizer = opened.tokenizer(opened.config["vocab_size"])
        stored = safetensors.DTYPES[dtype]
        tensors = [opened.tensors[name] for name in expected]  # the model's order
        shards, size = safetensors.plan(tensors, stored), safetensors.size(tensors, stored)
        stamps = {file: stamp(file) for file in opened.files}
        return cls(opened, tokenizer, stored, shards, size, _licence(path), stamps)

    @functools.cached_property
    def inputs(self) -> dict[str, str]:
        """File name -> sha256 of what the checkpoint is read from: a minute for 13 GB.

        Raises RecipeError if a file is not what the manifest of its folder says, as that of a download.
        """
        found = hash_inputs({file.name: file for file in self.source.files})
        check_listed({file: found[file.name] for file in self.source.files})
        return found

    def write(self, folder: Path) -> dict[str, Any]:
        """Weights, config, generation config and tokenizer into `folder`; the results for the manifest.

        Raises RecipeError on values that are not finite, or not once they are fp16, and where the checkpoint was
        written to in the meantime.
        """
        with progress(total=self.bytes, unit="B", unit_scale=True, desc="convert") as bar:
            safetensors.write(folder, self.shards, self.dtype, bar.update)
        check_unchanged(self.stamps)
        self.tokenizer.save(folder)
        changed = hf_config.write(folder, self.source.config, self.tokenizer.fast, self.dtype)
        repairs = [*self.source.repairs, *self.tokenizer.repairs, *changed]
        for repair in repairs:
            say(f"repaired: {repair}")
        return {**self.describe(), "repairs": repairs, "licence": self.licence}

    def compare(self) -> str:
        """Report which published checkpoint has these files; its name, empty if none is known."""
        origin = published.compare(self.inputs)
        say(origin.sentence)
        return origin.name

    def describe(self) -> dict[str, Any]:
        """Its numbers, for the dry run and the manifest."""
        tensors = [tensor for shard in self.shards for tensor in shard]
        return {
            "kind": self.source.kind,
            "tensors": len(tensors),
            "parameters": sum(tensor.numel for tensor in tensors),
            "bytes": self.bytes,
            "shards": len(self.shards),
        }


def _licence(path: Path) -> str:
    """The licence that `fetch` recorded with the raw weights."""
    folder = path if path.is_dir() else path.parent
    if not (folder / MANIFEST).is_file():
        return "unknown"
    return str(read_manifest(folder).get("results", {}).get("licence", "unknown"))
