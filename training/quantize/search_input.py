"""The input quantizer of a layer: format, largest value and zero point of least mean squared error on samples.

Mixup-sign (MSFP, arXiv 2505.21591, section 3): where samples are asymmetric, unsigned formats with a zero point compete
with signed ones. What is asymmetric is measured, not assumed from the activation in front: see ``asymmetry``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.msfp.formats import FloatFormat, candidates
from ...kernels.msfp.inputs import DYNAMIC, STATIC, InputQuantizer
from ...kernels.msfp.rounding import fake_quantize

# Above this one side reaches more than twice as far as the other.
ASYMMETRIC = 1 / 3
TAIL = 0.001
# Numbers that a static search looks at, and the largest values that it tries: shares of the whole reach.
VALUES = 1 << 16
COARSE, FINE, LEAST_SHARE = 32, 8, 1 / 64
# An input that stays below is 0 for all that follows: no range could be written for it.
LEAST_REACH = 1e-24
ZERO_TAILS = (0.0, 0.001, 0.01, 0.1)
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
METHODS = ("msfp", "signed", "int")


@dataclass(frozen=True)
class InputChoice:
    """What was chosen for a layer, and what else was tried: mean squared errors over the input's mean square.

    ``quantizer`` is None where the input is always 0, or as good as 0: there is nothing to round.
    """

    quantizer: InputQuantizer | None
    error: float
    signed: float
    unsigned: float | None
    integer: float
    asymmetry: float


def asymmetry(values: Tensor) -> float:
    """Return (high + low) / (high - low) of the 0.1 % and 99.9 % quantiles: 0 symmetric, 1 never negative."""
    low, high = (float(torch.quantile(values, q)) for q in (TAIL, 1 - TAIL))
    return (high + low) / (high - low) if high > low else float(high > 0) - float(high < 0)


def search_input(tokens: Tensor, bits: int, mode: str = STATIC, method: str = "msfp") -> InputChoice:
    """Return the quantizer for an input of which ``tokens (rows, features)`` are samples.

    ``method``: 'msfp' all formats, unsigned ones too where samples are asymmetric; 'signed' e2m1 (or the format of more
    bits nearest to it) alone; 'int' whole steps, with a zero point. All choose their ranges by least squares.
    """
    tokens = tokens.float()
    values = _some(tokens.flatten())
    power = float(values.double().square().mean())
    if float(values.abs().max()) < LEAST_REACH:
        return InputChoice(None, 0.0, 0.0, None, 0.0, 0.0)
    best = _static if mode == STATIC else _dynamic
    skew, sample = asymmetry(values), values if mode == STATIC else tokens
    whole = FloatFormat(0, bits - 1), FloatFormat(0, bits, signed=False)
    integers = [best(sample, [form]) for form in whole]
    signed = best(sample, _plain(bits) if method == "signed" else candidates(bits, True))
    unsigned = None
    if method == "msfp" and abs(skew) >= ASYMMETRIC:
        unsigned = best(sample, candidates(bits, False))
    pool = integers if method == "int" else [found for found in (signed, unsigned) if found is not None]
    error, chosen = min(pool, key=lambda found: found[0])
    return InputChoice(
        chosen,
        error / power,
        signed[0] / power,
        None if unsigned is None else unsigned[0] / power,
        min(found[0] for found in integers) / power,
        skew,
    )


def _plain(bits: int) -> list[FloatFormat]:
    """Return the signed format that hardware has: e2m1, e3m2, e4m3."""
    return [FloatFormat({4: 2, 6: 3, 8: 4}[bits], {4: 1, 6: 2, 8: 3}[bits])]


def _some(values: Tensor) -> Tensor:
    """Return at most ``VALUES`` of the values, evenly spread, with the extremes among them."""
    if len(values) <= VALUES:
        return values
    step = len(values) // VALUES
    return torch.cat([values[:: step + 1], values.amin()[None], values.amax()[None]])


def _static(values: Tensor, forms: Sequence[FloatFormat]) -> tuple[float, InputQuantizer]:
    """Return (MSE, quantizer) of least error among formats, zero points and largest values."""
    found = []
    for form in forms:
        for zero in [0.0] if form.signed else _zeros(values):
            reach = float(values.abs().max()) if form.signed else float(values.max()) - zero
            if reach <= 0:  # all that is above this zero point is the zero point itself
                reach = float(values.abs().max())
            offset = None if form.signed else torch.tensor(zero, dtype=torch.float32)

            def errors(shares: Tensor, form: FloatFormat = form, offset: Tensor | None = offset, reach=reach) -> Tensor:
                return _errors(values, form, shares * reach, offset)

            share = _least(errors)
            maxval = share * reach
            found.append((float(errors(torch.tensor([share]))[0]), InputQuantizer(form, STATIC, maxval, zero)))
    return min(found, key=lambda one: one[0])


def _zeros(values: Tensor) -> list[float]:
    """Return the zero points that are tried: the least value and low quantiles of it, and 0 above them."""
    found = {float(torch.quantile(values, tail)) for tail in ZERO_TAILS}
    found.add(min(0.0, max(found)) if max(found) < 0 else 0.0)
    return sorted(found)


def _errors(values: Tensor, form: FloatFormat, maxvals: Tensor, zero: Tensor | None) -> Tensor:
    """Return the MSE of each largest value."""
    scale = (maxvals.float() / form.top)[:, None]
    rounded = fake_quantize(values[None].expand(len(maxvals), -1), form, scale, zero)
    return (rounded - values).double().square().mean(1)


def _least(errors: Callable[[Tensor], Tensor]) -> float:
    """Return the share of the reach, in (0, 1], with the least error: a geometric grid, then a finer one around it."""
    shares = torch.logspace(0, 1, COARSE, base=LEAST_SHARE, dtype=torch.float64)
    best = float(shares[errors(shares).argmin()])
    step = LEAST_SHARE ** (1 / (COARSE - 1))
    fine = (best * torch.logspace(-1, 1, 2 * FINE + 1, base=step, dtype=torch.float64)).clamp(max=1.0)
    return float(fine[errors(fine).argmin()])


def _dynamic(tokens: Tensor, forms: Sequence[FloatFormat]) -> tuple[float, InputQuantizer]:
    found = []
    for form in forms:
        for share in SHARES:
            quantizer = InputQuantizer(form, DYNAMIC, share)
            found.append((float((quantizer.reference(tokens) - tokens).double().square().mean()), quantizer))
    return min(found, key=lambda one: one[0])
