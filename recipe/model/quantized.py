"""A frozen base in 8 or 4 bits: its linear layers, and a copy of them on the disk beside the weights.

The copy is an artefact with a manifest like any other. With it a start reads 7 GB instead of 13.5. It is never needed:
where it is absent, stale, damaged or cannot be written, the weights themselves are read.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from recipe.checkpoints import safetensors
from recipe.checkpoints.source import LazyTensor
from recipe.core.errors import RecipeError, UnfitError
from recipe.core.files import MANIFEST, atomic_folder, lock_folder, remove_leftovers, sha256
from recipe.core.manifest import check_intact, hash_inputs, read_manifest, verify, write_manifest
from recipe.core.run import quantized_folder
from recipe.core.text import say
from recipe.core.versions import environment
from recipe.pascal import int8
from recipe.pascal.int8 import Int8Linear

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit

STAGE = "quantise"
PRECISIONS = ("int8", "nf4")
SHARD_BYTES = 1_000_000_000


def is_quantized(name: str, module: nn.Module) -> bool:
    """Whether the tensor `name` of `module` is quantized: the weight of a linear layer of the decoder."""
    return isinstance(module, nn.Linear) and ".layers." in name and name.endswith(".weight")


def linear(weight: torch.Tensor, precision: str, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """A frozen layer without bias that stores `weight` [out, in] in int8 or nf4 and computes in `dtype`.

    nf4 is that of bitsandbytes with double quantization (Dettmers et al. 2023, arXiv:2305.14314). Its kernels need
    CUDA: raises UnfitError on a CPU.
    """
    if precision == "int8":
        return Int8Linear(weight.to(device))
    from bitsandbytes import functional
    from bitsandbytes.nn import Params4bit

    layer = _empty_nf4(weight.shape, dtype)
    try:
        codes, state = functional.quantize_4bit(weight.to(device, dtype), compress_statistics=True, quant_type="nf4")
    except NotImplementedError:
        raise UnfitError(
            f"base.precision is nf4 on {device.type}, expected a CUDA GPU: bitsandbytes has no 4-bit kernel for "
            "anything else; set base.precision = int8"
        ) from None
    layer.weight = Params4bit(codes, quant_state=state, quant_type="nf4", bnb_quantized=True, module=layer)
    layer.quant_state = state
    return layer


def restored(tensors: dict[str, torch.Tensor], precision: str, device: torch.device, dtype: torch.dtype) -> nn.Linear:
    """The layer whose `state_dict` is `tensors`, bit for bit.

    int8: `weight` int8 [out, in] and `scale` fp32 [out, 1]; nf4: the names of bitsandbytes.
    """
    if precision == "int8":
        return Int8Linear.from_codes(tensors["weight"].to(device), tensors["scale"].to(device))
    from bitsandbytes.nn import Params4bit

    state = {name: tensor for name, tensor in tensors.items() if name != "weight"}
    weight = Params4bit.from_prequantized(tensors["weight"], state, device=device)
    layer = _empty_nf4(weight.quant_state.shape, dtype)
    layer.weight, layer.quant_state = weight, weight.quant_state
    return layer


def _empty_nf4(shape: Iterable[int], dtype: torch.dtype) -> "Linear4bit":
    from bitsandbytes.nn import Linear4bit

    rows, columns = shape
    return Linear4bit(columns, rows, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")


def find(base: Path, precision: str) -> Path | None:
    """The folder of the copy if it was made from these weights by this code and every hash in it holds; else None."""
    folder = quantized_folder(base, precision)
    if precision not in PRECISIONS or not _may_be_ours(folder) or not (base / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
        if manifest["config"] != {"precision": precision} or manifest["inputs"] != _inputs(base, precision):
            say(f"{folder} was made from other weights, or by other code or another bitsandbytes: it is written again")
            return None
        problems = verify(folder)
    except RecipeError as error:
        problems = [str(error)]
    if problems:
        say(f"{folder} is damaged and written again: {problems[0]}")
        return None
    remove_leftovers(folder)
    say(f"read {folder}, the {precision} copy of {base} (manifest verified)")
    return folder


def read(folder: Path) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """(module name, its tensors by their names within it) of a copy, one module at a time, on the CPU."""
    for shard in safetensors.open_shards(folder):
        names: dict[str, dict[str, LazyTensor]] = {}
        for name, tensor in shard.items():
            module, _, leaf = name.partition("/")
            names.setdefault(module, {})[leaf] = tensor
        for module, leaves in names.items():
            yield module, {leaf: tensor.read() for leaf, tensor in leaves.items()}


def write(model: nn.Module, base: Path, precision: str, rest: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write a copy of `model`'s quantized layers, and of the `rest` as stored, for the next start.

    `rest` yields (name, tensor) of what is not quantized. A full or read-only disk is reported and costs nothing else.
    Raises RecipeError if the weights that were read are not those of their manifest: the copy would carry its
    fingerprint and other numbers.
    """
    folder = quantized_folder(base, precision)
    if not (base / MANIFEST).is_file():
        return  # without a manifest there is nothing to compare a copy with
    check_intact(base)
    if folder.exists() and not _may_be_ours(folder):
        say(f"no {precision} copy is written for the next start: {folder} holds something else")
        return
    try:
        with lock_folder(folder), atomic_folder(folder, replace_any=True) as partial:
            _write_shards(partial, model, rest)
            write_manifest(partial, STAGE, {"precision": precision}, _inputs(base, precision), {})
    except (OSError, RecipeError) as error:
        say(f"no {precision} copy is written ({error}): the next start reads the weights again")
    else:
        say(f"wrote {folder}, {base} in {precision}: the next start reads it instead")


def _write_shards(folder: Path, model: nn.Module, rest: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Shards of about SHARD_BYTES; all tensors of a module are in one, so that `read` can yield them together."""
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
    """(module name, its tensors). In a file a name is module/leaf: the leaves of bitsandbytes contain dots."""
    for name, module in model.named_modules():
        if is_quantized(f"{name}.weight", module):
            yield name, module.state_dict()
    for name, tensor in rest:
        module_name, _, leaf = name.rpartition(".")
        yield module_name, {leaf: tensor}


def _may_be_ours(folder: Path) -> bool:
    """Whether this module made the folder, intact or not; never true for another stage's output of the same name."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        return read_manifest(folder)["stage"] == STAGE
    except RecipeError:
        return any(folder.glob("[0-9]*.safetensors"))


def _inputs(base: Path, precision: str) -> dict[str, str]:
    """The weights that a copy is made of, and what quantizes them."""
    own = precision == "int8"
    by = {"code": sha256(Path(int8.__file__))} if own else {"bitsandbytes": environment()["bitsandbytes"]}
    return hash_inputs({"base": base}) | by
