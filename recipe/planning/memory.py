"""Memory of a LoRA step on a frozen LLaMA, estimated by arithmetic before the run.

The arithmetic counts what autograd keeps for each operation of transformers' LlamaDecoderLayer (4.49) with frozen
linear layers that keep nothing (int8.py, bitsandbytes' NF4), peft's LoRA, packed sequences (attention.py) and the
fused linear cross entropy (loss.py). Every term names its operation; tests/planning/test_memory.py compares the totals
with real steps.
"""

import dataclasses
from dataclasses import dataclass

from recipe.pascal.constants import LOGIT_ROWS, TILED_FROM, layer_ranges, partial_bytes, recomputed_by_gpu

FP32 = 4
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # 4 bits, one 8-bit scale per 64 weights, one fp32 scale per 256 scales
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2}  # two moments per trained parameter
# Linear layers with the same value read the same tensor.
INPUTS = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention") | dict.fromkeys(("gate_proj", "up_proj"), "mlp")
INPUTS |= {"o_proj": "heads", "down_proj": "product"}


@dataclass(frozen=True)
class Shape:
    """The shape of a LLaMA, with the names of its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name -> (in, out) of the linear layers of one decoder layer."""
        hidden, wide = self.hidden_size, self.intermediate_size
        narrow = hidden // self.num_attention_heads * self.num_key_value_heads
        return {
            "q_proj": (hidden, hidden),
            "k_proj": (hidden, narrow),
            "v_proj": (hidden, narrow),
            "o_proj": (hidden, hidden),
            "gate_proj": (hidden, wide),
            "up_proj": (hidden, wide),
            "down_proj": (wide, hidden),
        }

    def linear_parameters(self) -> int:
        """Weights in the linear layers of all decoder layers: those that are stored in `base.precision`."""
        return self.num_hidden_layers * sum(fan_in * fan_out for fan_in, fan_out in self.linears().values())


@dataclass(frozen=True)
class Step:
    """A training step: one pack of `tokens` tokens, forward and backward.

    The attention terms assume that the pack is a single conversation, which is the worst case.
    """

    tokens: int
    trained: int  # tokens with a loss
    rank: int
    targets: tuple[str, ...]
    dropout: bool
    precision: str = "int8"
    optimizer: str = "adamw"
    # A CPU copies where it casts, stores the dropout mask as numbers and, for short sequences, the attention matrix.
    cuda: bool = True
    fp16_accumulation: bool = False  # the frozen int8 layers multiply as gemm.py does
    fp16_arithmetic: bool = True  # a GPU without it computes in fp32
    split: int = 1  # GPUs that share the decoder layers (model/split.py)

    @property
    def half(self) -> bool:
        """Whether the step runs under autocast to 16 bits: on a GPU; on a CPU this recipe computes in fp32."""
        return self.cuda and self.fp16_arithmetic

    @property
    def width(self) -> int:
        """Bytes of one activation. Beside fp32 weights most are fp32, also under autocast; all are counted so."""
        return 2 if self.half and self.precision != "fp32" else FP32


@dataclass(frozen=True)
class Estimate:
    """Peak memory of a step in bytes, by purpose."""

    weights: int
    adapters: int  # fp32 parameters and their gradients
    optimizer: int
    kept: int  # activations kept for the backward pass
    loss: int  # a few rows of logits and the gradient of the hidden states
    layer: int  # transient in one layer: recomputed activations, gradients, a dequantized weight

    @property
    def peak(self) -> int:
        """Total. The loss is freed before the first layer's backward pass, so only the larger of the two counts."""
        return self.weights + self.adapters + self.optimizer + self.kept + max(self.loss, self.layer)


def estimate_memory(shape: Shape, step: Step, recomputed: int) -> Estimate:
    """Peak memory of a step with activation checkpointing in `recomputed` layers, on the GPU that needs the most."""
    return max(estimate_by_gpu(shape, step, recomputed), key=lambda estimate: estimate.peak)


def estimate_by_gpu(shape: Shape, step: Step, recomputed: int) -> list[Estimate]:
    """Peak memory on each of the GPUs that share the layers. The first one holds everything that is not a layer."""
    layers = shape.num_hidden_layers
    counts = recomputed_by_gpu(layers, step.split, recomputed)
    parts = [dataclasses.replace(shape, num_hidden_layers=len(own)) for own in layer_ranges(layers, step.split)]
    first, *others = (_estimate_one(part, step, count) for part, count in zip(parts, counts, strict=True))
    rest = _unquantized_bytes(dataclasses.replace(shape, num_hidden_layers=0), step)
    final_norm = _norm(shape, step)
    return [
        first,
        *(
            dataclasses.replace(other, weights=other.weights - rest, loss=0, kept=other.kept - final_norm)
            for other in others
        ),
    ]


def _estimate_one(shape: Shape, step: Step, recomputed: int) -> Estimate:
    """Peak memory on one GPU, with activation checkpointing in the first `recomputed` of its layers.

    The first layers, because the backward pass reaches them last, when the activations of the others are freed.
    """
    trained = adapter_parameters(shape, step)
    whole, layer_input = layer_kept(shape, step), step.tokens * shape.hidden_size * step.width
    stored = (shape.num_hidden_layers - recomputed) * whole
    inputs = recomputed * layer_input
    final_norm = _norm(shape, step)
    # The peak is at one of two points: the backward pass of the last layer, with the activations of all others in
    # memory; or of a recomputed layer, with all of its activations and its output's gradient. `layer` is what the
    # larger one needs beyond the kept activations.
    last = layer_work(shape, step) if stored else 0
    # its own input is the one that its first norm keeps, so it is not counted again: the output's gradient is
    again = whole + layer_work(shape, step) - stored if recomputed else 0
    return Estimate(
        weights=weight_bytes(shape, step),
        adapters=trained * 2 * FP32,
        optimizer=trained * OPTIMIZER_BYTES[step.optimizer],
        kept=stored + inputs + final_norm,
        loss=loss_bytes(shape, step),
        layer=max(last, again),
    )


def fewest_recomputed(shape: Shape, step: Step, budget: int) -> int | None:
    """The fewest recomputed layers with a peak within `budget` bytes; None if even recomputing all does not fit."""
    layers = shape.num_hidden_layers
    return next((count for count in range(layers + 1) if estimate_memory(shape, step, count).peak <= budget), None)


def weight_bytes(shape: Shape, step: Step) -> int:
    """Bytes of the frozen base: linear layers in its precision; embeddings, norms and lm_head in the compute dtype."""
    each = {"int8": 1.0, "nf4": NF4_BYTES}.get(step.precision, step.width)
    rows = shape.num_hidden_layers * sum(fan_out for _, fan_out in shape.linears().values())
    scales = rows * FP32 if step.precision == "int8" else 0
    return int(shape.linear_parameters() * each) + scales + _unquantized_bytes(shape, step)


def _unquantized_bytes(shape: Shape, step: Step) -> int:
    """Bytes of embeddings, norms and lm_head."""
    rest = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    rest += (2 * shape.num_hidden_layers + 1) * shape.hidden_size
    return rest * step.width


def adapter_parameters(shape: Shape, step: Step) -> int:
    """Trained parameters: A [rank, in] and B [out, rank] of every target module in every layer."""
    linears = shape.linears()
    return shape.num_hidden_layers * step.rank * sum(sum(linears[name]) for name in step.targets)


def layer_kept(shape: Shape, step: Step) -> int:
    """Bytes that autograd keeps for the backward pass of one decoder layer."""
    copies = 0
    if step.half and step.precision == "fp32":  # autocast's copies of the frozen weights
        copies = 2 * sum(fan_in * fan_out for fan_in, fan_out in shape.linears().values())
    return _until_scores(shape, step) + _after_scores(shape, step) + copies


def _until_scores(shape: Shape, step: Step) -> int:
    """Norm, and query, key and value; grouped heads are repeated where the kernel does not support groups."""
    query = step.tokens * shape.hidden_size * step.width
    groups = shape.num_attention_heads // shape.num_key_value_heads
    log_sums = step.tokens * shape.num_attention_heads * FP32  # one log-sum-exp per row
    if step.cuda:  # the memory-efficient kernel keeps its output, too
        scores = 4 * query + log_sums
    elif _tiled(step):
        scores = query + 2 * query // groups + log_sums
    else:
        scores = 3 * query + _scores(shape, step)
    return _norm(shape, step) + _lora(shape, step, ("q_proj", "k_proj", "v_proj")) + scores


def _tiled(step: Step) -> bool:
    """Whether the CPU computes attention in tiles (tiled_attention.py)."""
    return not step.cuda and step.tokens >= TILED_FROM


def _after_scores(shape: Shape, step: Step) -> int:
    """The MLP keeps both factors of its product. Frozen linear layers keep nothing."""
    product = 2 * step.tokens * shape.intermediate_size * step.width
    return _norm(shape, step) + _lora(shape, step, ("o_proj", "gate_proj", "up_proj", "down_proj")) + product


def _norm(shape: Shape, step: Step) -> int:
    """A norm keeps its input and one number per row."""
    return step.tokens * (shape.hidden_size * step.width + FP32)


def _lora(shape: Shape, step: Step, names: tuple[str, ...]) -> int:
    """Adapters keep their shared input once, what each A makes of it, and A and B in the compute dtype (lora.py)."""
    adapted = set(names) & set(step.targets)
    widths = {INPUTS[name]: shape.linears()[name][0] for name in adapted}
    per_token = sum(widths.values()) + step.rank * len(adapted)
    copies = step.rank * sum(sum(shape.linears()[name]) for name in adapted)
    return (step.tokens * per_token + copies) * step.width


def layer_work(shape: Shape, step: Step) -> int:
    """Peak transient bytes of one layer, forward or backward, beyond the kept activations.

    The maximum over four points: the adapter on down_proj, forward; down_proj itself; the product before it, backward;
    on a CPU the softmax. Each adds to the residual stream or its gradient.
    """
    stream = step.tokens * shape.hidden_size * step.width
    numbers = step.tokens * shape.intermediate_size
    adapted = "down_proj" in step.targets
    freed = _lora(shape, step, ("down_proj",))
    points = [
        _frozen(shape, step) - freed,
        3 * numbers * step.width - freed,  # gradients of the product and of its two factors
    ]
    if adapted:  # its input, also after dropout, and its output
        points.append(numbers * (1 + step.dropout) * step.width + stream)
    if not step.cuda and not _tiled(step):  # input and output of the softmax
        points.append(2 * _scores(shape, step) - _after_scores(shape, step))
    return stream + max(points)


def _frozen(shape: Shape, step: Step) -> int:
    """Bytes around down_proj, the widest frozen layer:

    input (or its gradient) + weight as computed with + max(gradient by the adapter, fp32 copies on a CPU) + partials.
    """
    wide = step.tokens * shape.intermediate_size * step.width
    adapter_grad = wide if "down_proj" in step.targets else 0
    if step.precision not in ("int8", "nf4"):
        return wide + adapter_grad
    weight = shape.hidden_size * shape.intermediate_size
    copies = 0 if step.cuda else FP32 * (1 + step.half)
    directions = ((shape.intermediate_size, shape.hidden_size), (shape.hidden_size, shape.intermediate_size))
    partials = max(partial_bytes(step.tokens, *sizes) for sizes in directions) if step.fp16_accumulation else 0
    return wide + weight * step.width + max(adapter_grad, weight * copies) + partials


def loss_bytes(shape: Shape, step: Step) -> int:
    """Bytes of the fused linear cross entropy (loss.py): the trained hidden states and their fp32 gradient, plus the
    larger of one chunk's logits with their exponentials and the gradient scattered back to all tokens."""
    states = step.trained * shape.hidden_size
    forward = (step.width + (2 if step.half else 1) * FP32) * min(LOGIT_ROWS, step.trained) * shape.vocab_size
    backward = states * FP32 + step.tokens * shape.hidden_size * step.width
    return states * (FP32 + step.width) + max(forward, backward)


def _scores(shape: Shape, step: Step) -> int:
    """Bytes of the attention matrix."""
    return shape.num_attention_heads * step.tokens**2 * step.width
