"""How much memory a LoRA step on a frozen LLaMA takes, by arithmetic before the run.

The arithmetic counts what autograd keeps for each operation of transformers' LlamaDecoderLayer (4.49) with frozen
linear layers that keep nothing (int8.py, bitsandbytes' 4 bit), peft's LoRA, packs (attention.py) and chunked logits
(loss.py). Every term names its operation, and tests/planning/test_memory.py holds the sums against real steps.
"""

from dataclasses import dataclass

from recipe.pascal.constants import LOGIT_ROWS, TILED_FROM, partial_bytes

MIB = 1 << 20
FP32 = 4
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # codes, one 8-bit scale per 64, one fp32 scale per 256 scales
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2}  # two moments of each trained number
# Which linear maps read the same tensor.
INPUTS = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "attention") | dict.fromkeys(("gate_proj", "up_proj"), "mlp")
INPUTS |= {"o_proj": "heads", "down_proj": "product"}


@dataclass(frozen=True)
class Shape:
    """A LLaMA's shape, in the words of its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False

    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of a layer's linear maps."""
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
        """Weights of all layers' linear maps: what a precision below fp16 shrinks."""
        return self.num_hidden_layers * sum(fan_in * fan_out for fan_in, fan_out in self.linears().values())


@dataclass(frozen=True)
class Step:
    """What a training step is made of: a pack of `conversations` of `length` tokens each."""

    conversations: int
    length: int
    trained: int  # tokens with a loss
    rank: int
    targets: tuple[str, ...]
    dropout: bool
    precision: str = "int8"
    optimizer: str = "adamw"
    half: bool = True  # autocast to 16 bit; this recipe computes in fp32 on a CPU
    # A CPU's kernels copy where they cast, and keep dropout's mask as numbers and short attention's scores as a matrix.
    on_card: bool = True
    fp16_sums: bool = False  # the frozen layers multiply as gemm.py does

    @property
    def width(self) -> int:
        """Bytes of an activation in the compute dtype."""
        return 2 if self.half else FP32

    @property
    def tokens(self) -> int:
        return self.conversations * self.length


@dataclass(frozen=True)
class Estimate:
    """Bytes of a step at its peak, by what they are for."""

    weights: int
    adapters: int  # fp32 numbers, their gradients, and 16-bit copies under autocast
    optimizer: int
    kept: int  # activations that wait for the backward pass
    loss: int  # a few rows of logits, and the gradient of the hidden states
    layer: int  # the work inside one layer: its recomputed activations, gradients, a dequantised weight

    @property
    def peak(self) -> int:
        """The loss is over before a layer's backward begins, so the two share their place."""
        return self.weights + self.adapters + self.optimizer + self.kept + max(self.loss, self.layer)


def estimate(shape: Shape, step: Step, recomputed: int) -> Estimate:
    """The peak of a step whose first `recomputed` layers keep only their input and run forward again in backward.

    The first, because backward comes to them last, when what the other layers kept is gone.
    """
    trained = adapter_parameters(shape, step)
    whole, given = layer_kept(shape, step), step.tokens * shape.hidden_size * step.width
    stored = (shape.num_hidden_layers - recomputed) * whole
    inputs = recomputed * given
    ends = _norm(shape, step)
    # Two moments compete: the last layer's backward, with all others' activations there; the recomputed layers', with
    # one of them whole and its output's gradient waiting. `layer` is what the higher one has beyond the kept ones.
    last = layer_work(shape, step) if stored else 0
    again = whole + given + layer_work(shape, step) - stored if recomputed else 0
    return Estimate(
        weights=weight_bytes(shape, step),
        adapters=trained * (2 * FP32 + (step.width if step.half else 0)),
        optimizer=trained * OPTIMIZER_BYTES[step.optimizer],
        kept=stored + inputs + ends,
        loss=loss_bytes(shape, step),
        layer=max(last, again),
    )


def fewest_recomputed(shape: Shape, step: Step, budget: int) -> int | None:
    """The least number of recomputed layers whose peak is within `budget` bytes; None where even all do not fit."""
    layers = shape.num_hidden_layers
    return next((count for count in range(layers + 1) if estimate(shape, step, count).peak <= budget), None)


def weight_bytes(shape: Shape, step: Step) -> int:
    """The frozen base: linear layers by precision, embeddings, norms and lm_head in the compute dtype."""
    rest = shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)
    rest += (2 * shape.num_hidden_layers + 1) * shape.hidden_size
    width = FP32 if step.precision == "fp32" else step.width
    each = {"int8": 1.0, "nf4": NF4_BYTES}.get(step.precision, width)
    rows = shape.num_hidden_layers * sum(fan_out for _, fan_out in shape.linears().values())
    scales = rows * FP32 if step.precision == "int8" else 0
    return int(shape.linear_parameters() * each) + scales + rest * width


def adapter_parameters(shape: Shape, step: Step) -> int:
    """Trained numbers: A [rank, in] and B [out, rank] of every target in every layer."""
    linears = shape.linears()
    return shape.num_hidden_layers * step.rank * sum(sum(linears[name]) for name in step.targets)


def layer_kept(shape: Shape, step: Step) -> int:
    """Bytes that autograd keeps for one decoder layer's backward pass."""
    return _until_scores(shape, step) + _after_scores(shape, step)


def _until_scores(shape: Shape, step: Step) -> int:
    """Norm, and query, key and value, grouped ones repeated as far as the kernel knows no groups."""
    query = step.tokens * shape.hidden_size * step.width
    groups = shape.num_attention_heads // shape.num_key_value_heads
    if step.on_card:  # the memory-efficient kernel keeps its output and a log-sum-exp per row
        scores = 4 * query + step.tokens * shape.num_attention_heads * FP32
    elif _blocked(step):
        scores = query + 2 * query // groups
    else:
        scores = 3 * query + step.conversations * _scores(shape, step)
    return _norm(shape, step) + _lora(shape, step, ("q_proj", "k_proj", "v_proj")) + scores


def _blocked(step: Step) -> bool:
    """Whether a CPU takes the scores of these conversations in blocks."""
    return not step.on_card and step.length >= TILED_FROM


def _after_scores(shape: Shape, step: Step) -> int:
    """The MLP keeps the two factors of its product. Frozen linear layers keep nothing."""
    product = 2 * step.tokens * shape.intermediate_size * step.width
    return _norm(shape, step) + _lora(shape, step, ("o_proj", "gate_proj", "up_proj", "down_proj")) + product


def _norm(shape: Shape, step: Step) -> int:
    """Its input, and one number a row."""
    return step.tokens * (shape.hidden_size * step.width + FP32)


def _lora(shape: Shape, step: Step, names: tuple[str, ...]) -> int:
    """Each A keeps its input in the compute dtype and each B A's output; dropout keeps its mask."""
    per_token, shared = 0, set()
    for name in set(names) & set(step.targets):
        fan_in = shape.linears()[name][0]
        per_token += step.rank * step.width
        if step.dropout:
            per_token += fan_in * ((1 if step.on_card else FP32) + step.width)
        elif step.half or INPUTS[name] not in shared:  # autocast casts peft's fp32 input once more for every adapter
            per_token += fan_in * step.width
        shared.add(INPUTS[name])
    return step.tokens * per_token


def layer_work(shape: Shape, step: Step) -> int:
    """The most that one layer has, forward or backward, beyond the activations it keeps.

    Four moments: an adapter on down_proj, forward; down_proj itself; the product before it, backward; on a CPU the
    softmax's. Beside each lies the residual stream or its gradient.
    """
    stream = step.tokens * shape.hidden_size * step.width
    numbers = step.tokens * shape.intermediate_size
    adapted = "down_proj" in step.targets
    freed = _lora(shape, step, ("down_proj",))
    moments = [
        _frozen(shape, step) - freed,
        3 * numbers * step.width - freed,  # the gradients of the product and of its two factors
    ]
    if adapted:  # its input as it came, in peft's fp32, and dropped; its output and the frozen layer's
        inputs = step.half * (step.width + FP32) + step.dropout * FP32
        moments.append(numbers * inputs + 2 * stream)
    if not step.on_card and not _blocked(step):  # coming in and going out, one conversation at a time
        moments.append(2 * _scores(shape, step) - _after_scores(shape, step))
    return stream + max(moments)


def _frozen(shape: Shape, step: Step) -> int:
    """down_proj, the widest frozen layer: its dequantised weight and its input or, backward, that one's gradient.

    Backward an adapter's gradient waits beside it; forward a CPU casts codes, and a 16-bit result, in fp32 copies.
    """
    wide = step.tokens * shape.intermediate_size * step.width
    waiting = wide if "down_proj" in step.targets else 0
    if step.precision not in ("int8", "nf4"):
        return wide + waiting
    weight = shape.hidden_size * shape.intermediate_size
    copies = 0 if step.on_card else FP32 * (1 + step.half)
    ways = ((shape.intermediate_size, shape.hidden_size), (shape.hidden_size, shape.intermediate_size))
    partials = max(partial_bytes(step.tokens, *way) for way in ways) if step.fp16_sums else 0
    return wide + weight * step.width + max(waiting, weight * copies) + partials


def loss_bytes(shape: Shape, step: Step) -> int:
    """loss.py: the trained hidden states and their fp32 gradient, with a chunk's logits and their exponentials, or with
    that gradient scaled and put back among all tokens."""
    states = step.trained * shape.hidden_size
    forward = (step.width + (2 if step.half else 1) * FP32) * min(LOGIT_ROWS, step.trained) * shape.vocab_size
    backward = states * FP32 + step.tokens * shape.hidden_size * step.width
    return states * (FP32 + step.width) + max(forward, backward)


def _scores(shape: Shape, step: Step) -> int:
    """Bytes of one conversation's matrix of scores."""
    return shape.num_attention_heads * step.length**2 * step.width
