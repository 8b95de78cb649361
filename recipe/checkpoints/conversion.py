"""A conversion: planned and checked before a byte is written, then written."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recipe.checkpoints import hf_config, llama, published, safetensors, source
from recipe.checkpoints.open import open_source
from recipe.checkpoints.source import LazyTensor, Source
from recipe.checkpoints.tokenizer import Tokenizer
from recipe.core.manifest import hash_inputs
from recipe.core.text import progress, say


@dataclass(frozen=True)
class Conversion:
    """A checkpoint whose names, shapes and tokenizer are right, and the shards of `dtype` that it becomes."""

    source: Source
    tokenizer: Tokenizer
    dtype: torch.dtype
    shards: list[list[LazyTensor]]
    bytes: int

    @classmethod
    def plan(cls, path: Path, dtype: str) -> "Conversion":
        """Open and check the checkpoint at `path`; `dtype` is fp16 or fp32. Reads headers, not weights.

        Raises RecipeError: an incomplete, damaged or unknown checkpoint, a tokenizer of another size.
        """
        opened = open_source(path)
        expected = llama.expected_shapes(opened.config, path)
        source.check_shapes(path, opened.tensors, expected)
        tokenizer = opened.tokenizer(opened.config["vocab_size"])
        stored = safetensors.DTYPES[dtype]
        tensors = [opened.tensors[name] for name in expected]  # the model's order
        return cls(opened, tokenizer, stored, safetensors.plan(tensors, stored), safetensors.size(tensors, stored))

    @functools.cached_property
    def inputs(self) -> dict[str, str]:
        """File name -> sha256 of what the checkpoint is read from: a minute for 13 GB."""
        return hash_inputs({file.name: file for file in self.source.files})

    def write(self, folder: Path) -> dict[str, Any]:
        """Weights, config, generation config and tokenizer into `folder`; the results for the manifest.

        Raises RecipeError on values that are not finite, or not once they are fp16.
        """
        with progress(total=self.bytes, unit="B", unit_scale=True, desc="convert") as bar:
            safetensors.write(folder, self.shards, self.dtype, bar.update)
        self.tokenizer.save(folder)
        changed = hf_config.write(folder, self.source.config, self.tokenizer.fast, self.dtype)
        repairs = [*self.source.repairs, *self.tokenizer.repairs, *changed]
        for repair in repairs:
            say(f"repaired: {repair}")
        origin = published.compare(self.inputs)
        say(origin.sentence)
        return {**self.describe(), "repairs": repairs, "published": origin.name}

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
