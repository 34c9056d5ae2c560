"""Measures the error of the rules by which FP8 attention could round and normalize P; prints a table.

    python -m tests.kernels.measure_p_rule        (about a minute on one core)

Q, K and V are exact here, so that only P's rounding shows. Tensor core sums are modeled with the 13 explicit bits and
the truncation per 32 products that Hopper's FP8 accumulator is known for, over blocks of 128 keys, which are then added
in float32.
"""

from __future__ import annotations

import math

import torch

ROWS, DIM, BLOCK = 32, 128, 128
SCENES = {
    # name: (keys, standard deviation of the logits, mean of V)
    "flat, 4,096 keys": (4096, 1.0, 0.0),
    "peaked, 4,096 keys": (4096, 4.0, 0.0),
    "flat, 75,600 keys, V mean 0.5": (75600, 1.0, 0.5),
    "peaked, 75,600 keys, V mean 0.5": (75600, 4.0, 0.5),
}


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """Return x rounded to e4m3."""
    return x.float().to(torch.float8_e4m3fn).double()


def truncated(x: torch.Tensor, bits: int = 13) -> torch.Tensor:
    """Return x with its significand cut off after ``bits`` explicit bits."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.trunc(mantissa * 2 ** (bits + 1)), exponent - bits - 1)


def tensor_core(p: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return ``p @ v`` of one block, summed 32 products at a time with truncation."""
    total = torch.zeros(p.shape[0], v.shape[1], dtype=torch.float64)
    for start in range(0, p.shape[1], 32):
        total = truncated(total + p[:, start : start + 32] @ v[start : start + 32])
    return total


def attend(scores: torch.Tensor, v: torch.Tensor, *, integer_max: bool, total: str) -> torch.Tensor:
    """Return attention by blocks with a running maximum; ``total``: sum of 'exact' weights, of 'rounded' ones, or of
    rounded ones by the tensor 'core'."""
    ones = torch.ones(BLOCK, 1, dtype=torch.float64)
    high = torch.full((len(scores), 1), -math.inf, dtype=torch.float64)
    out, norm = torch.zeros(len(scores), v.shape[1], dtype=torch.float64), torch.zeros(len(scores), 1).double()
    for start in range(0, scores.shape[1], BLOCK):
        s, values = scores[:, start : start + BLOCK], v[start : start + BLOCK]
        new = torch.maximum(high, s.amax(1, keepdim=True))
        new = new.ceil() if integer_max else new
        p = torch.exp2(s - new + 8)
        rounded, rescale = e4m3(p), torch.exp2(high - new)
        sums = {
            "exact": lambda p=p: p.sum(1, keepdim=True),
            "rounded": lambda r=rounded: r.sum(1, keepdim=True),
            "core": lambda r=rounded: tensor_core(r, ones[: r.shape[1]]),
        }
        norm = norm * rescale + sums[total]()
        out = out * rescale + tensor_core(rounded, values)
        high = new
    return out / norm


RULES = {
    "running maximum, sum of exact P": {"integer_max": False, "total": "exact"},
    "running maximum, sum of rounded P": {"integer_max": False, "total": "rounded"},
    "integer maximum, sum of exact P": {"integer_max": True, "total": "exact"},
    "integer maximum, sum of rounded P": {"integer_max": True, "total": "rounded"},
    "integer maximum, sum of rounded P by the tensor core": {"integer_max": True, "total": "core"},
}


def main() -> None:
    """Print relative L2 error, change under reversed key order, and bias of the mean for every rule and scene."""
    for scene, (keys, spread, mean) in SCENES.items():
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(ROWS, keys, generator=generator).double() * spread * math.log2(math.e)
        values = torch.randn(keys, DIM, generator=generator).double() * (1.0 if mean == 0 else 0.5) + mean
        # V is exact for the product too: its own rounding is another error.
        values = e4m3(values)
        exact = torch.softmax(scores * math.log(2), 1) @ values
        print(scene)
        for name, rule in RULES.items():
            out = attend(scores, values, **rule)
            back = attend(scores.flip(1), values.flip(0), **rule)
            error, order = ((x - y).norm() / exact.norm() for x, y in ((out, exact), (out, back)))
            bias = (out - exact).mean() / exact.mean() if mean else math.nan
            print(f"  {name:55s} error {error:.1e}  order {order:.1e}  bias {bias:+.1e}")


if __name__ == "__main__":
    main()
