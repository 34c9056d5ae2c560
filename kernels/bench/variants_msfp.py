"""The variants of the MSFP kernels that are compiled ahead of time, on shapes of Wan2.1 14B."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..msfp import triton_msfp
from ..msfp.formats import FloatFormat
from ..msfp.inputs import DYNAMIC, STATIC, InputQuantizer
from ..msfp.packing import packed_width
from ..msfp.weights import CHANNEL, TENSOR, PackedWeight, WeightFormat
from .recording import Launch, recording

ALL_CARDS = (80, 86, 89, 90, 100, 120)
ROWS, COLUMNS, TOKENS = 5120, 13824, 75_600


@dataclass(frozen=True)
class MsfpVariant:
    """One call: ``what`` is 'dequantize', 'product' (of ``rows`` tokens) or 'round', for a format by its name."""

    name: str
    what: str
    form: str = "e2m1"
    granularity: str | int = 64
    dtype: torch.dtype = torch.bfloat16
    scale: torch.dtype = torch.float32
    mode: str = STATIC
    rows: int = 1
    cards: tuple[int, ...] = ALL_CARDS

    def launches(self, capability: int) -> list[Launch]:
        """Return what a card of ``capability`` would be asked to run for this call."""
        form = FloatFormat.parse(self.form)
        with recording(capability) as launches:
            if self.what == "round":
                x = torch.empty(1, TOKENS, COLUMNS, dtype=self.dtype, device="meta")
                triton_msfp.quantize_input(x, InputQuantizer(form, self.mode, 1.0))
            elif self.what == "dequantize":
                triton_msfp.dequantize(self._weight(form), self.dtype)
            else:
                x, bias = (
                    torch.empty(*shape, dtype=self.dtype, device="meta") for shape in ((self.rows, COLUMNS), (ROWS,))
                )
                triton_msfp.product(x, self._weight(form), bias)
        return launches

    def _weight(self, form: FloatFormat) -> PackedWeight:
        packed = WeightFormat(form, self.granularity)
        codes = torch.empty(ROWS, packed_width(COLUMNS, form.bits), dtype=torch.uint8, device="meta")
        scale = torch.empty(packed.scale_shape(ROWS, COLUMNS), dtype=self.scale, device="meta")
        return PackedWeight(codes, scale, None if form.signed else scale, packed, COLUMNS)


def msfp_variants() -> list[MsfpVariant]:
    """Return every variant."""
    half = torch.bfloat16
    return [
        MsfpVariant("dequantize e2m1 64", "dequantize"),
        MsfpVariant("dequantize ue2m2 channel bf16 scales", "dequantize", "ue2m2", CHANNEL, scale=half),
        MsfpVariant("dequantize e2m3 64", "dequantize", "e2m3"),
        MsfpVariant("dequantize e4m3 tensor float32", "dequantize", "e4m3", TENSOR, torch.float32),
        MsfpVariant("product e2m1 64, 1 row", "product"),
        MsfpVariant("product e2m1 64, 64 rows", "product", rows=64),
        MsfpVariant("product ue2m2 channel bf16 scales, 64 rows", "product", "ue2m2", CHANNEL, scale=half, rows=64),
        MsfpVariant("product e2m3 64, 64 rows", "product", "e2m3", rows=64),
        MsfpVariant("product e4m3 64, 64 rows", "product", "e4m3", rows=64),
        MsfpVariant("round e2m1 static", "round"),
        MsfpVariant("round ue2m2 static", "round", "ue2m2"),
        MsfpVariant("round e2m1 dynamic", "round", mode=DYNAMIC),
        MsfpVariant("round ue2m2 dynamic", "round", "ue2m2", mode=DYNAMIC),
    ]
