"""The model as every stage uses it: a frozen base, an adapter on it, its held-out loss, its answers."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from recipe import quantised
from recipe.config import Lora
from recipe.errors import RecipeError
from recipe.pascal.attention import packed_attention
from recipe.pascal.lean import slim
from recipe.pascal.loss import chunked_nll

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

if not torch.cuda.is_available():
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of the missing card at import; doctor judges

ADAPTER_FILE = "adapter_model.safetensors"
IGNORED = -100  # the label of a position without loss, as torch's cross entropy has it
ATTENTION = "packed"  # the name of recipe.pascal.attention among transformers' attention functions


def device() -> torch.device:
    """The card if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(where: torch.device) -> torch.dtype:
    """fp16 on a card (Pascal has no bf16); fp32 on a CPU, where torch 2.0 has no half-precision matmul."""
    return torch.float16 if where.type == "cuda" else torch.float32


def load_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that `convert` left beside the weights."""
    from transformers import AutoTokenizer

    check_folder(path)
    return AutoTokenizer.from_pretrained(str(path), local_files_only=True)


def load(path: Path, precision: str, where: torch.device, copy: Path | None = None) -> "LlamaForCausalLM":
    """Converted weights -> a frozen LlamaForCausalLM in eval mode on `where`.

    precision int8, nf4: the decoder's linear layers are quantised tensor by tensor as they are read, so the unquantised
    model never exists, and a copy is left beside the weights, which the next call reads instead, to the same bits
    (`copy`: its folder, where the caller has just found it intact);
    fp16, fp32: stored as such (on a CPU fp16 weights compute, and so lie, in fp32).
    Embeddings, norms and lm_head are in the compute dtype. Raises RecipeError on a missing or superfluous tensor.
    """
    from accelerate import init_empty_weights
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    check_folder(path)
    config = LlamaConfig.from_pretrained(str(path), local_files_only=True)
    ALL_ATTENTION_FUNCTIONS[ATTENTION] = packed_attention
    config._attn_implementation = ATTENTION
    config._name_or_path = ""  # a path of this machine must not reach the adapter's config
    with init_empty_weights(include_buffers=False):
        model = LlamaForCausalLM(config)
    dtype = torch.float32 if precision == "fp32" else compute_dtype(where)
    cached = copy or quantised.find(path, precision)
    try:
        if cached:
            for name, tensors in quantised.read(cached):
                _restore(model, name, tensors, precision, dtype, where)
        else:
            for name, tensor in read_tensors(path):
                _place(model, name, tensor, precision, dtype, where)
    except (AttributeError, ValueError) as error:
        raise RecipeError(f"{path}: {name} does not fit its own config.json ({error}); convert it again") from None
    model.tie_weights()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise RecipeError(f"{path} lacks {missing[0]} and {len(missing) - 1} more tensors; convert it again")
    model.to(where).requires_grad_(False).eval()
    layers = model.model.layers
    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    slim([*norms, model.model.norm], [layer.mlp for layer in layers], [layer.self_attn for layer in layers])
    if precision in quantised.PRECISIONS and not cached:
        rest = (item for item in read_tensors(path) if not _is_quantised(model, item[0]))
        quantised.write(model, Path(path), precision, rest)
    return model


def read_tensors(path: Path) -> Iterable[tuple[str, torch.Tensor]]:
    """(name, tensor on the CPU) for every tensor of a folder of safetensors, one at a time."""
    from safetensors import safe_open

    for file in weight_files(path):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - a safetensors handle is no dict
                yield name, shard.get_tensor(name)


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder, in the index's order of names."""
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise RecipeError(f"{path} holds no .safetensors file: run `python -m recipe.convert` first")
    return files


def check_folder(path: Path) -> None:
    """Raises RecipeError where `path` is not a converted model."""
    if not (Path(path) / "config.json").is_file():
        raise RecipeError(f"{path} is not a converted model (no config.json): run `python -m recipe.convert` first")


def _place(model: nn.Module, name: str, tensor: torch.Tensor, precision: str, dtype: torch.dtype, where: Any) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    expected = getattr(parent, leaf).shape
    if tensor.shape != expected:
        raise ValueError(f"found shape {list(tensor.shape)}, expected {list(expected)}")
    if precision in quantised.PRECISIONS and quantised.is_quantised(name, parent):
        _replace(model, parent_name, quantised.linear(tensor, precision, where, dtype))
    else:
        setattr(parent, leaf, nn.Parameter(tensor.to(where, dtype), requires_grad=False))


def _restore(
    model: nn.Module, name: str, tensors: dict[str, torch.Tensor], precision: str, dtype: torch.dtype, where: Any
) -> None:
    """What `_place` did when the quantised copy was made; here `tensors` are all of one module."""
    if _is_quantised(model, f"{name}.weight"):
        _replace(model, name, quantised.restored(tensors, precision, where, dtype))
    else:
        for leaf, tensor in tensors.items():
            _place(model, f"{name}.{leaf}", tensor, precision, dtype, where)


def _is_quantised(model: nn.Module, name: str) -> bool:
    return quantised.is_quantised(name, model.get_submodule(name.rpartition(".")[0]))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    outer, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(outer), attribute, module)


def add_adapter(model: "LlamaForCausalLM", lora: Lora, seed: int) -> "PeftModel":
    """A fresh LoRA adapter on `model`, in fp32. The seed is set here, before A is drawn; B starts at zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    # of the decoder's layers: the loss reads lm_head's weight, so an adapter on it would be passed over
    modules = model.model.layers.named_modules()
    known = {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    unknown = set(lora.target_modules) - known
    if unknown:
        raise RecipeError(f"lora.target_modules: a layer has no {min(unknown)}, it has {', '.join(sorted(known))}")
    set_seed(seed)
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, settings)


def load_adapter(model: "LlamaForCausalLM", path: Path) -> "PeftModel":
    """A trained adapter on `model`, for inference."""
    from peft import PeftModel

    check_adapter(path)
    return PeftModel.from_pretrained(model, str(path)).eval()


def check_adapter(path: Path, trained: bool = True) -> dict[str, torch.Tensor]:
    """The adapter's tensors, once it is sure that it was really trained and really saved.

    Raises RecipeError: no file, an A without its B, a value that is not finite, or every B zero, as in the empty
    adapters that old recipes leave after days (a B of zeros is a LoRA that does nothing; with `trained=False` it may,
    since warm-up begins with a step of learning rate 0).
    """
    from safetensors.torch import load_file

    file = Path(path) / ADAPTER_FILE
    if not file.is_file():
        raise RecipeError(f"{path} holds no {ADAPTER_FILE}: the run did not finish; `make train` goes on with it")
    tensors = load_file(file)
    settings = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    lacking = [module for module in settings["target_modules"] if not any(f".{module}." in name for name in tensors)]
    pairs = {name.replace(".lora_A.", ".lora_B.") for name in tensors}
    if not tensors or lacking or not pairs <= tensors.keys() or len(tensors) != 2 * len(pairs):
        what = f"nothing for {lacking[0]}" if lacking else "an A without its B"
        raise RecipeError(f"{file} is not a whole adapter ({what} in {len(tensors)} tensors); train again")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RecipeError(f"{file}: {name} holds inf or NaN; lower train.learning_rate and train again")
    if trained and all(tensor.eq(0).all() for name, tensor in tensors.items() if ".lora_B." in name):
        raise RecipeError(f"{file}: every B is zero, so this adapter changes nothing; it was not trained")
    return tensors


def causal_lm(model: Any) -> "LlamaForCausalLM":
    """The LLaMA itself, from under an adapter if there is one (its layers stay the adapter's)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def autocast(where: torch.device) -> AbstractContextManager:
    """fp16 matmuls on a card; nothing on a CPU."""
    return torch.autocast("cuda", torch.float16) if where.type == "cuda" else nullcontext()


def trained_nll(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood (nats, fp32) of a pack's trained tokens, and how many there are.

    batch: what `data.collate` makes. Only the hidden states that predict a trained token meet lm_head, a few at a
    time. Raises RecipeError where there is none.
    """
    llama = causal_lm(model)
    where = llama.lm_head.weight.device
    targets = batch["labels"][0, 1:].to(where)
    keep = (targets != IGNORED).nonzero().squeeze(1)
    if not len(keep):
        raise RecipeError("a batch without a trained token: the corpus holds a sample without an assistant turn")
    with autocast(where):
        hidden = llama.model(
            input_ids=batch["input_ids"].to(where),
            position_ids=batch["position_ids"].to(where),
            attention_mask=torch.empty(1, 1, 1, 1, device=where),  # unread; its shape keeps transformers from S x S
            use_cache=False,
            lengths=batch["lengths"],
            shared=batch["shared"],
        ).last_hidden_state
        return chunked_nll(hidden[0, keep], llama.lm_head.weight, targets[keep]), len(keep)


def held_out_nll(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> tuple[float, int]:
    """Total negative log-likelihood in nats and number of trained tokens over `batches`; dropout off, no gradients."""
    training, total, count = model.training, 0.0, 0
    model.eval()
    with torch.no_grad():
        for batch in batches:
            nll, tokens = trained_nll(model, batch)
            total, count = total + nll.item(), count + tokens
    model.train(training)
    return total, count


def answers(
    model: Any,
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    on_text: Callable[[str], None] | None = None,
) -> list[str]:
    """The model's answer to each prompt of token ids, all at once: greedy at temperature 0, else sampled.

    Each stops at EOS, which is not part of it. `on_text` (one prompt only) receives the text as it is generated.
    """
    from transformers import GenerationConfig

    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    )
    end = tokenizer.eos_token_id
    settings = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=end, **sampling)
    where = next(model.parameters()).device
    length = max(len(prompt) for prompt in prompts)
    padding = [length - len(prompt) for prompt in prompts]  # on the left, so that every answer begins in one column
    ids = torch.tensor([[end] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)], device=where)
    mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding], device=where)
    with torch.no_grad(), autocast(where):
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            streamer=_streamer(tokenizer, on_text) if on_text else None,
        )
    return [tokenizer.decode(_until(row, end), skip_special_tokens=True).strip() for row in out[:, length:].tolist()]


def _until(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


def _streamer(tokenizer: "PreTrainedTokenizerFast", on_text: Callable[[str], None]) -> Any:
    """transformers' own TextStreamer (it holds back half a word or half a character) with `on_text` as its output."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
