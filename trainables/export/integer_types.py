"""Which of ONNX's integers hold which codes. No torch, and onnx alone is not needed either."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.errors import ConfigError

OPSETS = (18, 25)
"""The first that PyTorch's exporter writes, and the last that onnxruntime runs of what is used here."""


@dataclass(frozen=True, slots=True)
class IntegerType:
    """An integer type of ONNX tensors."""

    name: str
    lo: int
    hi: int
    since: int
    """First opset whose DequantizeLinear reads it."""

    @property
    def bits(self) -> int:
        """Of one number, packed."""
        return (self.hi - self.lo).bit_length()

    def holds(self, lo: int, hi: int) -> bool:
        """Whether it has all whole numbers from `lo` to `hi`."""
        return self.lo <= lo and hi <= self.hi


INT2, INT4 = IntegerType("INT2", -2, 1, 25), IntegerType("INT4", -8, 7, 21)
INT8, UINT8 = IntegerType("INT8", -128, 127, 13), IntegerType("UINT8", 0, 255, 13)
INT16, UINT16 = IntegerType("INT16", -(2**15), 2**15 - 1, 21), IntegerType("UINT16", 0, 2**16 - 1, 21)
WEIGHT_TYPES = (INT2, INT4, INT8, INT16)
MATMUL_TYPES = (INT4, INT8, INT16)
"""Of a weight that MatMul reads: onnxruntime 1.31 fuses one of 2 bits into an operator that has none, and refuses."""
ACT_TYPES = (UINT8, INT8, UINT16, INT16)
"""Of what QuantizeLinear makes. Nothing is stored of activations, and hardly a runtime multiplies narrower ones."""


def smallest(types: tuple[IntegerType, ...], lo: int, hi: int, *, opset: int, what: str) -> IntegerType:
    """The narrowest of `types` that holds `lo` … `hi`. Raises ConfigError where the opset has none; `what` is named."""
    for kind in types:
        if kind.holds(lo, hi) and kind.since <= opset:
            return kind
    later = [kind for kind in types if kind.holds(lo, hi)]
    fix = f"give --opset {later[0].since}" if later else "finetune a policy of at most 16 bits"
    raise ConfigError(f"{what} has codes from {lo} to {hi}, which no integer of opset {opset} holds; {fix}.")
