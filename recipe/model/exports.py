"""What leaves a run: every form of its tuned model, with weights that are read one layer at a time."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig

from recipe.checkpoints import gguf, safetensors
from recipe.checkpoints.adapter import Delta, read_deltas
from recipe.checkpoints.merging import merged_tensor
from recipe.checkpoints.open import open_source
from recipe.checkpoints.source import LazyTensor
from recipe.core.config import Config
from recipe.core.errors import RecipeError
from recipe.core.files import file_size
from recipe.core.manifest import check_inputs, check_intact, hash_inputs
from recipe.core.run import Run
from recipe.pascal import int8


@dataclass(frozen=True)
class Export:
    """One form of the tuned model: weights under Hugging Face's names, with `deltas` beside them if not merged.

    `identity`: the hashes that its loss follows from. `bytes`: of its files, None where it was not written.
    """

    name: str
    config: LlamaConfig
    tensors: Mapping[str, LazyTensor]
    identity: Mapping[str, str]
    deltas: Mapping[str, Delta] | None = None
    bytes: int | None = None


def find_exports(run: Run, config: Config) -> Iterator[Export]:
    """The model as it was trained first, then the two ways to merge it, then every other format in the run's folder.

    The merges are computed as they are read, whether or not they were written; what was written is read from its files.
    Raises RecipeError: a file was altered, or was made from another base or adapter.
    """
    base, precision = Path(config.base.path), config.base.precision
    llama = LlamaConfig.from_pretrained(str(base), local_files_only=True)
    weights, deltas = safetensors.open_folder(base), read_deltas(run.adapter)
    trained = hash_inputs({"base": base, "run": run.folder})
    if precision == "nf4":
        raise RecipeError(
            "base.precision is nf4, whose weights are read by CUDA kernels only, so exports cannot be compared with "
            "the model as it was trained; expected int8, fp16 or fp32"
        )
    stored = int8_weights(weights) if precision == "int8" else weights
    yield Export(f"adapter on the {precision} base, as trained", llama, stored, trained, deltas)
    yield _merged(run, base, llama, weights, deltas)
    if precision == "int8":
        dequantized = {name: merged_tensor(tensor, deltas.get(name)) for name, tensor in stored.items()}
        yield Export("merge into the dequantized int8 base", llama, dequantized, trained)
    for folder in run.exported():
        yield _read_export(run, folder, base, llama, weights)


def int8_weights(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The weights as an int8 base computes with them: the linear layers of the decoder quantized and dequantized."""

    def rounded(tensor: LazyTensor) -> LazyTensor:
        if ".layers." not in tensor.name or len(tensor.shape) != 2:
            return tensor

        def read() -> torch.Tensor:
            return int8.dequantize(*int8.quantize(tensor.read()), torch.float32)

        return dataclasses.replace(tensor, read=read)

    return {name: rounded(tensor) for name, tensor in tensors.items()}


def _merged(
    run: Run, base: Path, llama: LlamaConfig, weights: Mapping[str, LazyTensor], deltas: Mapping[str, Delta]
) -> Export:
    """The merge into the base's own weights: its files if they were written, else what would be written."""
    name, folder, made_from = "merge into the base (hf)", run.merged(), {"base": base, "run": run.folder}
    if not folder.is_dir():
        tensors = {key: merged_tensor(tensor, deltas.get(key)) for key, tensor in weights.items()}
        return Export(name, llama, tensors, hash_inputs(made_from))
    check_intact(folder)
    check_inputs(folder, made_from)
    return Export(
        name, llama, safetensors.open_folder(folder), hash_inputs({"merged": folder}), bytes=file_size(folder)
    )


def _read_export(run: Run, folder: Path, base: Path, llama: LlamaConfig, weights: Mapping[str, LazyTensor]) -> Export:
    """A format that `recipe.merge` wrote, from its files."""
    to = folder.name.removeprefix(f"{run.merged().name}-")
    check_intact(folder)
    made_from = {"base": base, "run": run.folder} if to == "gguf-lora" else {"merged": run.merged()}
    check_inputs(folder, made_from)
    identity = hash_inputs({"export": folder, "base": base})
    if to == "gguf-lora":
        (file,) = folder.glob("*.gguf")
        deltas = gguf.read_adapter(file, llama.to_dict())
        return Export(f"{to} beside the base", llama, weights, identity, deltas, bytes=file_size(folder))
    source = open_source(folder)
    return Export(to, LlamaConfig(**source.config), source.tensors, identity, bytes=file_size(folder))
