"""A frozen base in 8 or 4 bits: its linear layers, and a copy of them on the disk beside the weights.

The copy is an artefact with a manifest like any other. It saves a start from reading 13.5 GB to make 7 of them, and is
only ever a saving: where it is absent, stale, damaged or cannot be written, the weights themselves are read.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from recipe.checkpoints import safetensors
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError, UnfitError
from recipe.core.files import MANIFEST, atomic_folder, sha256
from recipe.core.manifest import hash_inputs, read_manifest, verify, write_manifest
from recipe.core.text import say
from recipe.pascal import int8
from recipe.pascal.int8 import Int8Linear

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit

STAGE = "quantise"
PRECISIONS = ("int8", "nf4")
SHARD_BYTES = 1_000_000_000


def is_quantised(name: str, module: nn.Module) -> bool:
    """Whether the tensor called `name`, of `module`, is stored in few bits: a decoder layer's linear weight."""
    return isinstance(module, nn.Linear) and ".layers." in name and name.endswith(".weight")


def linear(weight: torch.Tensor, precision: str, where: torch.device, dtype: torch.dtype) -> nn.Linear:
    """A frozen layer without bias that holds `weight` [out, in] in int8 or nf4 and computes in `dtype`.

    nf4 is bitsandbytes' with double quantisation (Dettmers et al. 2023, arXiv:2305.14314), which has kernels for CUDA
    alone: raises UnfitError on a CPU.
    """
    if precision == "int8":
        return Int8Linear(weight.to(where))
    from bitsandbytes import functional
    from bitsandbytes.nn import Params4bit

    layer = _empty_nf4(weight.shape, dtype)
    try:
        codes, state = functional.quantize_4bit(weight.to(where, dtype), compress_statistics=True, quant_type="nf4")
    except NotImplementedError:
        raise UnfitError(
            f"base.precision is nf4 on {where.type}, expected a CUDA card: bitsandbytes has no 4-bit kernel for "
            "anything else; set base.precision = int8"
        ) from None
    layer.weight = Params4bit(codes, quant_state=state, quant_type="nf4", bnb_quantized=True, module=layer)
    layer.quant_state = state
    return layer


def restored(tensors: dict[str, torch.Tensor], precision: str, where: torch.device, dtype: torch.dtype) -> nn.Linear:
    """The layer whose `state_dict` is `tensors`, to the bit."""
    if precision == "int8":
        return Int8Linear.from_codes(tensors["weight"].to(where), tensors["scale"].to(where))
    from bitsandbytes.nn import Params4bit

    state = {name: tensor for name, tensor in tensors.items() if name != "weight"}
    weight = Params4bit.from_prequantized(tensors["weight"], state, device=where)
    layer = _empty_nf4(weight.quant_state.shape, dtype)
    layer.weight, layer.quant_state = weight, weight.quant_state
    return layer


def _empty_nf4(shape: Iterable[int], dtype: torch.dtype) -> "Linear4bit":
    from bitsandbytes.nn import Linear4bit

    rows, columns = shape
    return Linear4bit(columns, rows, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")


def folder_of(base: Path, precision: str) -> Path:
    """Where the copy lies: beside the weights, as weights/llama-7b-int8."""
    base = Path(base)
    return base.with_name(f"{base.name}-{precision}")


def find(base: Path, precision: str) -> Path | None:
    """The folder of the copy if it was made from these weights by this code and every hash in it holds; else None."""
    folder = folder_of(base, precision)
    if precision not in PRECISIONS or not _may_be_ours(folder) or not (base / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
        if manifest["config"] != {"precision": precision} or manifest["inputs"] != _inputs(base):
            say(f"{folder} was made from other weights or by other code; it is made again")
            return None
        problems = verify(folder)
    except RecipeError as error:
        problems = [str(error)]
    if problems:
        say(f"{folder} is damaged and made again: {problems[0]}")
        return None
    say(f"read {folder}, the {precision} copy of {base}: its manifest holds")
    return folder


def read(folder: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """(module's name, its tensors by their names within it) of a copy, one module at a time, on the CPU."""
    for shard in safetensors.open_shards(folder):
        names: dict[str, dict[str, LazyTensor]] = {}
        for name, tensor in shard.items():
            module, _, leaf = name.partition("/")
            names.setdefault(module, {})[leaf] = tensor
        for module, leaves in names.items():
            yield module, {leaf: tensor.read() for leaf, tensor in leaves.items()}


def write(model: nn.Module, base: Path, precision: str, rest: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Leave a copy of `model`'s quantised layers, and of the `rest` as stored, for the next start. Never raises.

    `rest` yields (name, tensor) of what is not quantised. A disk that is full or read-only costs a sentence.
    """
    folder = folder_of(base, precision)
    if not (base / MANIFEST).is_file():
        return  # nothing to hold a copy against
    if folder.exists() and not _may_be_ours(folder):
        say(f"no {precision} copy is kept for the next start: {folder} holds something else")
        return
    try:
        with atomic_folder(folder, ours=True) as partial:
            _write_shards(partial, model, rest)
            write_manifest(partial, STAGE, {"precision": precision}, _inputs(base), {})
    except OSError as error:
        say(f"no {precision} copy is kept for the next start ({error}): it will read the weights again")
    else:
        say(f"wrote {folder}, {precision} as loaded: the next start reads it instead of {base}")


def _write_shards(folder: Path, model: nn.Module, rest: Iterable[tuple[str, torch.Tensor]]) -> None:
    """All of a module into one file, so that `read` finds it together."""
    shard: list[LazyTensor] = []
    count = 0
    for name, leaves in _modules(model, rest):
        shard += [_stored(f"{name}/{leaf}", tensor.detach()) for leaf, tensor in leaves.items()]
        if safetensors.size(shard, None) >= SHARD_BYTES:
            _write_shard(folder, count, shard)
            shard, count = [], count + 1
    if shard:
        _write_shard(folder, count, shard)


def _stored(name: str, tensor: torch.Tensor) -> LazyTensor:
    """A tensor of the model, copied to the CPU only when it is written."""
    return LazyTensor(name, tuple(tensor.shape), tensor.dtype, tensor.cpu)


def _write_shard(folder: Path, number: int, tensors: list[LazyTensor]) -> None:
    safetensors.write_file(folder / f"{number:05d}.safetensors", safetensors.library_order(tensors))


def _modules(
    model: nn.Module, rest: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """(module's name, its tensors). On the disk a name is module/leaf: a leaf of bitsandbytes' has dots of its own."""
    for name, module in model.named_modules():
        if is_quantised(f"{name}.weight", module):
            yield name, module.state_dict()
    for name, tensor in rest:
        module_name, _, leaf = name.rpartition(".")
        yield module_name, {leaf: tensor}


def _may_be_ours(folder: Path) -> bool:
    """A folder that this module made, whole or not any more; never another stage's output of the same name."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        return read_manifest(folder)["stage"] == STAGE
    except RecipeError:
        return any(folder.glob("[0-9]*.safetensors"))


def _inputs(base: Path) -> dict[str, str]:
    return {"base": hash_inputs({"base": base})["base"], "code": sha256(Path(int8.__file__))}
