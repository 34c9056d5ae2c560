"""The format and scales of a weight: least mean squared error over formats and, per group, over largest values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.msfp.formats import FloatFormat, candidates
from ...kernels.msfp.rounding import fake_quantize
from ...kernels.msfp.weights import CHANNEL, TENSOR, PackedWeight, WeightFormat, quantize_weight

# Largest values that are tried: shares of the group's largest magnitude. A format's gaps are wide near the top, so
# stretching it a little can pay as well.
SHARES = tuple(round(0.4 + 0.04 * i, 2) for i in range(17))
# Rows from which the format is chosen, and numbers that are rounded at once.
FORMAT_ROWS, CHUNK = 256, 1 << 22


@dataclass(frozen=True)
class WeightChoice:
    """A packed weight, and mean squared errors over the weight's mean square: its own and that of INT of its bits."""

    packed: PackedWeight
    error: float
    integer: float


def search_weight(
    weight: Tensor, bits: int, granularity: str | int, method: str = "msfp", scale_dtype: torch.dtype | None = None
) -> WeightChoice:
    """Return ``weight (rows, columns)`` packed. ``method``: 'msfp' all signed formats, 'signed' e2m1 (e3m2, e4m3 of
    more bits), 'int' whole steps. ``scale_dtype``: bf16 for groups, float32 for rows and tensors by default.

    Raises ValueError for numbers that are not finite.
    """
    weight = weight.detach().float()
    if not bool(weight.isfinite().all()):
        raise ValueError(f"{int((~weight.isfinite()).sum())} of its {weight.numel()} weights are not finite")
    scale_dtype = scale_dtype or default_scale_dtype(granularity)
    whole = FloatFormat(0, bits - 1)
    forms = {
        "msfp": candidates(bits, True),
        "signed": (FloatFormat({4: 2, 6: 3, 8: 4}[bits], {4: 1, 6: 2, 8: 3}[bits]),),
        "int": (whole,),
    }[method]
    some = weight if granularity == TENSOR else weight[:: max(1, len(weight) // FORMAT_ROWS)]
    errors = {form: _scales(some, WeightFormat(form, granularity), scale_dtype)[1] for form in {*forms, whole}}
    form = WeightFormat(min(forms, key=errors.__getitem__), granularity)
    power = float(weight.double().square().mean()) or 1.0
    scale, error = _scales(weight, form, scale_dtype)
    integer = errors[whole] / (float(some.double().square().mean()) or 1.0)
    return WeightChoice(quantize_weight(weight, form, scale), error / power, integer)


def default_scale_dtype(granularity: str | int) -> torch.dtype:
    """Return float32 where scales are few, else bf16: what it rounds a scale by is put right by the codes."""
    return torch.float32 if granularity in (TENSOR, CHANNEL) else torch.bfloat16


def _scales(weight: Tensor, form: WeightFormat, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Return the scales of least error and the mean squared error with them."""
    rows, columns = weight.shape
    shape = form.scale_shape(rows, columns)
    if form.granularity == TENSOR:
        scale, error = _best(weight.reshape(1, 1, -1), form.form, dtype, SHARES)
        return scale, float(error.sum()) / weight.numel()
    chunk = max(1, CHUNK // columns)
    found = [_best(part.reshape(len(part), shape[1], -1), form.form, dtype, SHARES) for part in weight.split(chunk)]
    error = sum(float(one[1].sum()) for one in found)
    return torch.cat([one[0] for one in found]), error / weight.numel()


def _best(x: Tensor, form: FloatFormat, dtype: torch.dtype, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return scale and squared error (rows, groups) of the best share for ``x (rows, groups, numbers)``."""
    reach = x.abs().amax(-1)
    best = torch.full_like(reach, float("inf"), dtype=torch.float64)
    chosen = torch.zeros_like(reach, dtype=dtype)
    for share in shares:
        scale = (reach * (share / form.top)).to(dtype)
        error = (fake_quantize(x, form, scale.float()[..., None]) - x).square().sum(-1, dtype=torch.float64)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    return chosen, best
