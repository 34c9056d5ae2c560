"""Numbers that follow from a journal's record: losses per phase and noise level, rates, utilization."""

from __future__ import annotations

from typing import Any

import torch

BUCKETS = 8

# Dense BF16 tensor-core TFLOP/s with float32 accumulation, without sparsity, from the makers' data sheets. The first
# name that the device's contains counts.
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.4),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 6000 Ada", 364.0),
    ("RTX A6000", 154.8),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)


def peak_flops(device: torch.device) -> float | None:
    """Return the device's dense BF16 peak in FLOP/s; None for a CPU or a card that is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for known, peak in PEAK_TFLOPS if known in name), None)


def bucket(sigma: float) -> int:
    """Return which of ``BUCKETS`` equal parts of (0, 1] a noise level lies in, counted from the cleanest."""
    return min(BUCKETS - 1, max(0, int(sigma * BUCKETS)))


def bucket_name(index: int) -> str:
    """Return a bucket's borders as text."""
    return f"{index / BUCKETS:.3f}-{(index + 1) / BUCKETS:.3f}"


def per_phase(record: dict[str, Any]) -> dict[int, float]:
    """Return the mean loss of the step's samples by phase; empty without losses per sample."""
    return _means(record, [int(phase) for phase in record.get("phase") or []])


def per_sigma(record: dict[str, Any]) -> dict[int, float]:
    """Return the mean loss of the step's samples by noise-level bucket; empty without losses per sample."""
    return _means(record, [bucket(sigma) for sigma in record.get("sigma") or []])


def rates(record: dict[str, Any], peak: float | None = None) -> dict[str, float]:
    """Return what the step's times say: tokens_per_second, data_wait (share of the step) and mfu, each if known.

    ``peak`` is the FLOP/s of all devices together. ``seconds`` of a record counts the step, ``data_seconds`` the part
    of it that was spent waiting for data.
    """
    found, seconds = {}, record.get("seconds")
    if not seconds:
        return found
    if record.get("tokens"):
        found["tokens_per_second"] = record["tokens"] / seconds
    if record.get("data_seconds") is not None:
        found["data_wait"] = min(1.0, record["data_seconds"] / seconds)
    if peak and record.get("flops"):
        found["mfu"] = record["flops"] / seconds / peak
    return found


def _means(record: dict[str, Any], keys: list[int]) -> dict[int, float]:
    losses = record.get("losses")
    if not losses or len(losses) != len(keys):
        return {}
    sums: dict[int, list[float]] = {}
    for key, loss in zip(keys, losses):
        if loss is not None:
            sums.setdefault(key, []).append(loss)
    return {key: sum(values) / len(values) for key, values in sorted(sums.items())}
