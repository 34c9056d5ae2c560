"""A whole step as text. Imports no torch."""

from __future__ import annotations

from .report import columns

PARTS = ("self-attention", "cross-attention", "linears", "rest")


def text(name: str, result: dict) -> str:
    """Return one whole-step cell: every variant with its parts, and what Amdahl's law says."""
    rows = [["step", "ms", "n", "spread", "dense by", "vs dense", "vs dense bf16", *PARTS]]
    notes = []
    for variant, v in result["variants"].items():
        if v.get("status") != "ok":
            notes.append(f"{variant}: {v.get('status')} ({v.get('reason')})")
            continue
        parts = v["parts_ms"]
        shares = [f"{parts[part]:.1f} ({parts[part] / parts['total']:.0%})" for part in PARTS]
        spread = f"{v['spread']:.1%}" if "spread" in v else "-"
        ratios = [f"{v[name]:.2f}x" if name in v else "-" for name in ("ratio_same_linears", "ratio")]
        rows.append([variant, f"{v['ms']:.1f}", str(v.get("count", 1)), spread, v.get("dense", "-"), *ratios, *shares])
        tried = ", ".join(f"{name} {ms:.1f} ms" for name, ms in v.get("dense_ms", {}).items())
        if tried:
            notes.append(f"{variant}: {tried}")
        law = v.get("amdahl")
        if law:
            notes.append(f"{variant}: {sentence(law)}")
    head = f"## {name}: {result['parameters'] / 1e9:.2f} billion parameters, mean density {result['mean_density']:.1%}"
    return "\n".join([head, columns(rows), *notes])


def sentence(law: dict) -> str:
    """Return what Amdahl's split says about the target ratio."""
    if law["density_for_target"] is None:
        return (
            f"{law['target']:.2f}x is out of reach by sparsity alone: with free self-attention the step would be "
            f"{law['limit']:.2f}x"
        )
    needed = law["density_for_target"]
    if needed >= 1:
        return f"{law['target']:.2f}x is reached at any density"
    return (
        f"{law['target']:.2f}x needs a mean density of {needed:.1%} (by the measured split; "
        f"with free self-attention {law['limit']:.2f}x)"
    )
