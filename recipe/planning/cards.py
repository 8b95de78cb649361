"""GPUs that a plan can be made for: memory, the rate of their matmuls with its source, and what changes on them."""

from dataclasses import dataclass

from recipe.pascal.constants import computes_in_fp16
from recipe.planning.hardware import CONTEXT_MIB, MARGIN_MIB, MIB, P100_FP16_TFLOPS, P100_MIB, P100_TFLOPS


@dataclass(frozen=True)
class Card:
    """A kind of GPU. `tflops`: the lowest and highest rate to expect of a large torch matmul in the compute dtype."""

    name: str
    short: str  # with its article
    capability: tuple[int, int]
    mib: int  # total memory as the driver reports it
    tflops: tuple[float, float]
    source: str  # of the rate
    fp16_tflops: float | None = None  # with fp16 accumulation, where that is faster
    note: str = ""  # what changes there

    @property
    def half(self) -> bool:
        """Whether it computes in fp16, else in fp32."""
        return computes_in_fp16(self.capability)

    @property
    def budget(self) -> int:
        """Bytes that a training step may take."""
        return (self.mib - CONTEXT_MIB - MARGIN_MIB) * MIB


P100_SOURCE = "fp16 matmuls of torch on a P100-PCIe, from two public benchmarks"
TENSOR_CORES = "tensor cores multiply in fp16 and accumulate in fp32 at full rate: keep matmul_accumulation = fp32"
P100 = Card("Tesla P100 16 GB", "a P100", (6, 0), P100_MIB, P100_TFLOPS, P100_SOURCE, P100_FP16_TFLOPS)
# Where nobody's measurement was at hand, a share of the data sheet's rate, which for the P100 is 0.85 to 0.9.
CARDS = {
    "p100": P100,
    "p100-12gb": Card(
        "Tesla P100 12 GB",
        "a P100 of 12 GB",
        (6, 0),
        12_198,
        P100_TFLOPS,
        f"{P100_SOURCE} (of the 16 GB card: the same chip)",
        P100_FP16_TFLOPS,
        note="memory is a quarter less and slower (549 instead of 732 GB/s)",
    ),
    "p40": Card(
        "Tesla P40",
        "a P40",
        (6, 1),
        22_919,
        (10.0, 10.6),
        "0.85 to 0.9 of the data sheet's 11.8 TFLOP/s in fp32, the share that a P100 reaches",
        note="fp16 arithmetic runs at 1/64 of the fp32 rate, so training computes in fp32",
    ),
    "v100": Card(
        "Tesla V100 16 GB",
        "a V100",
        (7, 0),
        16_160,
        (67.0, 95.0),
        "0.6 to 0.85 of the data sheet's 112 TFLOP/s (PCIe), assumed",
        note=TENSOR_CORES,
    ),
    "t4": Card(
        "Tesla T4",
        "a T4",
        (7, 5),
        15_109,
        (20.0, 39.0),
        "0.3 to 0.6 of the data sheet's 65 TFLOP/s, assumed: 70 W throttle the clock",
        note=TENSOR_CORES,
    ),
    "a100": Card(
        "A100 40 GB",
        "an A100",
        (8, 0),
        40_536,
        (187.0, 265.0),
        "0.6 to 0.85 of the data sheet's 312 TFLOP/s, assumed",
        note=f"{TENSOR_CORES}; bf16, which needs no loss scale, is on newer stacks and not in this image",
    ),
}


def find(name: str, mib: int) -> Card | None:
    """The card that a driver calls `name` and that has about `mib` MiB; None if it is not known here."""
    words = name.upper().replace("-", " ").split()
    fitting = [card for key, card in CARDS.items() if key.split("-")[0].upper() in words]
    return min(fitting, key=lambda card: abs(card.mib - mib), default=None)
