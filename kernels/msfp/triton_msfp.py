"""MSFP in Triton: what the kernels take, how they are launched, and where the fused product pays.

Importing this module imports no triton; launching does.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import triton_runtime
from .inputs import STATIC, InputQuantizer
from .weights import CHANNEL, TENSOR, PackedWeight, WeightFormat

UNIT = 8
# Codes are addressed as words of this type, by the bits of a code.
_WORDS = {4: torch.int32, 6: torch.int16, 8: torch.uint8}
# Units of a program: four per thread, whose codes are a load of 16 bytes for 4 bits.
_UNITS, _UNIT_WARPS = 512, 4
# Numbers of a program that rounds with one scale: two loads of 16 bytes per thread.
_NUMBERS, _NUMBER_WARPS = 2048, 4
# The longest row that one program holds, 32 numbers per thread.
LONGEST_ROW = 16384
_PER_THREAD = 32
# Rows of x up to which the fused product pays. Fused, a 4-bit weight is read once: 1/2 byte a number. Dequantized first
# it is read, written and read again by the product: 1/2 + 2 + 2. Both products are bound by that traffic up to here;
# the fused one would dequantize every block of 64 rows anew, while a product of 512 rows takes twice the time of the
# dequantization, of 32,760 a hundred times.
MOST_ROWS = 64
_OUTPUTS, _COLUMNS, _PRODUCT_WARPS, _STAGES = 32, 128, 4, 3
LEAST_CAPABILITY = 80


@functools.lru_cache(maxsize=16)
def why_not(device: torch.device) -> str | None:
    """Return why no kernel runs on ``device``, None if they do; the answer is kept."""
    reason = triton_runtime.available(device)
    if reason is None and not triton_runtime.interpreted():
        if torch.version.hip:
            return "the MSFP kernels need an NVIDIA card, this one is AMD"
        have = triton_runtime.capability(device)
        if have < LEAST_CAPABILITY:
            return f"the MSFP kernels need compute capability {LEAST_CAPABILITY / 10}, this card has {have / 10}"
    return reason


def why_not_weight(form: WeightFormat, columns: int) -> str | None:
    """Return why no kernel reads weights of this form, None if one does."""
    if columns % UNIT:
        return f"the MSFP kernels read rows in eights, this one has {columns} numbers"
    if isinstance(form.granularity, int) and form.granularity % UNIT:
        return f"the MSFP kernels read groups in eights, these have {form.granularity} numbers"
    return None


def why_not_input(quantizer: InputQuantizer, columns: int) -> str | None:
    """Return why no kernel rounds inputs of ``columns`` features, None if one does."""
    if quantizer.mode != STATIC and columns > LONGEST_ROW:
        return f"the MSFP kernels round rows of at most {LONGEST_ROW} numbers, this one has {columns}"
    return None


def fuses(rows: int, dtype: torch.dtype) -> bool:
    """Return whether the fused product is taken for ``rows`` of x: where it pays, and for what tensor cores take."""
    return 0 < rows <= MOST_ROWS and dtype in (torch.bfloat16, torch.float16)


def dequantize(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Return the values (rows, columns) of a packed weight, bit for bit those of ``dequantize_reference``."""
    from .triton_msfp_kernels import dequantize_units

    rows, columns = weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=weight.codes.device)
    units = out.numel() // UNIT
    if units:
        tensors, span, constants = _read(weight)
        triton_runtime.launch(
            dequantize_units,
            (-(-units // _UNITS),),
            out,
            *(*tensors, out, units, span),
            **constants,
            BLOCK=_UNITS,
            num_warps=_UNIT_WARPS,
            enable_fp_fusion=False,
        )
    return out


def quantize_input(x: Tensor, quantizer: InputQuantizer) -> Tensor:
    """Return ``x (..., features)`` rounded, contiguous, bit for bit as ``InputQuantizer.reference``."""
    from .triton_msfp_kernels import round_all, round_rows

    x = x.contiguous()
    out = torch.empty_like(x)
    if not x.numel():
        return out
    form, columns = quantizer.form, x.shape[-1]
    constants = {"MANTISSA": form.mantissa, "SIGNED": form.signed, "EVEN": form.exponent < 2, "TOP": float(form.top)}
    if quantizer.mode == STATIC:
        triton_runtime.launch(
            round_all,
            (-(-x.numel() // _NUMBERS),),
            x,
            *(x, out, x.numel(), quantizer.maxval, None if form.signed else quantizer.zero),
            **constants,
            BLOCK=_NUMBERS,
            num_warps=_NUMBER_WARPS,
            enable_fp_fusion=False,
        )
        return out
    block = 1 << (columns - 1).bit_length()
    triton_runtime.launch(
        round_rows,
        (x.numel() // columns,),
        x,
        *(x, out, columns, quantizer.maxval),
        **constants,
        BLOCK=block,
        num_warps=max(1, min(16, block // (32 * _PER_THREAD))),
        enable_fp_fusion=False,
    )
    return out


def product(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Return ``x (..., columns) W^T + bias`` in ``x``'s dtype for at most ``MOST_ROWS`` rows of x; sums are float32."""
    from .triton_msfp_kernels import packed_product

    outputs, columns = weight.shape
    x = x.contiguous()
    rows = x.numel() // columns
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    (codes, scale, zero), span, constants = _read(weight)
    triton_runtime.launch(
        packed_product,
        (-(-outputs // _OUTPUTS),),
        x,
        *(x, codes, scale, zero, None if bias is None else bias.contiguous()),
        *(out, rows, outputs, columns, span),
        **constants,
        BLOCK_N=_OUTPUTS,
        BLOCK_K=_COLUMNS,
        BLOCK_M=max(16, 1 << (rows - 1).bit_length()),
        num_warps=_PRODUCT_WARPS,
        num_stages=_STAGES,
        enable_fp_fusion=False,
    )
    return out


def _read(weight: PackedWeight) -> tuple[tuple[Tensor, Tensor, Tensor | None], int, dict[str, int | bool]]:
    """Return codes (as words), scales and zero points, the units of a row, and what a kernel that reads them is
    compiled for."""
    form, granularity = weight.format.form, weight.format.granularity
    codes = weight.codes.contiguous()
    if codes.data_ptr() % 4:  # a slice of something; words are addressed whole
        codes = codes.clone()
    zero = None if weight.zero is None else weight.zero.contiguous()
    spans = {TENSOR: 0, CHANNEL: -1}
    span = spans[granularity] if isinstance(granularity, str) else granularity // UNIT
    constants = {"BITS": form.bits, "MANTISSA": form.mantissa, "SIGNED": form.signed, "SPAN": span}
    return (codes.view(_WORDS[form.bits]), weight.scale.contiguous(), zero), weight.columns // UNIT, constants
