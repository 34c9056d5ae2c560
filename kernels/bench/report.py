"""The table of a result file: every cell, every contestant, and why something was not measured."""

from __future__ import annotations

from .figures import WITH_GRADIENT, baselines, cells_of, compare, fastest

COLUMNS = ("contestant", "ms", "spread", "density", "speed-up", "E", "TFLOP/s", "extra memory", "host us", "error")


def table(data: dict) -> str:
    """Return the whole report of a result file as text."""
    parts = [head(data)]
    for name, result in data["cells"].items():
        kind = result.get("cell", {}).get("kind")
        if result.get("status") != "ok":
            parts.append(f"## {name}\n{result.get('status')}: {result.get('message', '')}")
            if not result.get("contestants"):
                continue
        if kind == "attention":
            parts.append(attention(name, result, copy_rate(data)))
        elif kind == "model":
            from .model_report import text

            parts.append(text(name, result))
        elif kind == "heads" and result.get("status") == "ok":
            from .heads_report import text

            parts.append(text(name, result, columns))
        elif kind == "msfp" and result.get("status") == "ok":
            from .msfp_cell import text

            parts.append(text(name, result, columns))
        elif kind == "tune":
            parts.append(tuning(name, result))
        elif result.get("status") == "ok":
            parts.append(f"## {name}\n{result.get('headline', '')}\n{_rows(result)}".rstrip())
        if after := result.get("card_after"):
            parts[-1] += f"\ncard right after: {', '.join(f'{key} {value}' for key, value in after.items())}"
    return "\n\n".join(parts) + "\n"


def head(data: dict) -> str:
    """Return what the results were measured on, in a few lines."""
    header = data.get("header", {})
    versions = ", ".join(f"{name} {value}" for name, value in header.get("versions", {}).items())
    smi = header.get("nvidia_smi") or {}
    lines = [
        f"# {header.get('card', 'unknown card')}, commit {header.get('commit', 'unknown')}"
        + (f" with changes {header.get('changes')}" if header.get("dirty") else "")
        + f", {header.get('date', '')}",
        f"driver {smi.get('driver_version', '-')}, CUDA {header.get('cuda')}, cuDNN {header.get('cudnn')}; {versions}",
    ]
    if smi:
        lines.append(f"idle before: SM clock {smi.get('clocks.sm')} of {smi.get('clocks.max.sm')}, power limit "
                     f"{smi.get('power.limit')}")  # fmt: skip
    dense = baselines(data)
    lines.append(f"dense BF16 attentions in this file: {', '.join(dense) if dense else 'none'}")
    if data.get("standin"):
        lines.insert(0, "STAND-IN: measured on a CPU to try the path; the numbers say nothing about a card.")
    return "\n".join(lines)


def copy_rate(data: dict) -> float | None:
    """Return the bytes per second of a copy that the file's ceilings hold, None without them."""
    for result in cells_of(data, "ceilings").values():
        if rate := result.get("copy", {}).get("tb_per_s"):
            return rate * 1e12
    return None


def attention(name: str, result: dict, copy: float | None = None) -> str:
    """Return one attention cell: the contestants by time, then who did not take part and why. ``copy``: the bytes per
    second that quantization is compared with."""
    dense = fastest(result, "dense")
    backward = result["cell"]["direction"] == "backward"
    rows, others = [], []
    for contestant, entry in result.get("contestants", {}).items():
        if not entry.get("ms"):
            others.append(f"{contestant}: {entry.get('status')} ({entry.get('reason', '')})")
            continue
        speedup = dense[1]["ms"] / entry["ms"] if dense else None
        flops = result["dense_flops"] * (WITH_GRADIENT if backward else 1.0) * entry["density"]
        extra = entry.get("extra_bytes")
        rows.append(
            (
                entry["ms"],
                [
                    contestant,
                    f"{entry['ms']:.3f}",
                    f"{entry['spread']:.1%}",
                    f"{entry['density']:.2%}",
                    f"{speedup:.2f}x" if speedup else "-",
                    f"{speedup * entry['density']:.2f}" if speedup else "-",
                    f"{flops / entry['ms'] / 1e9:.1f}",
                    f"{extra / result['input_bytes']:.2f}x qkv" if extra is not None else "-",
                    f"{entry['host_us']:.0f}" if "host_us" in entry else "-",
                    f"{entry['error']:.1e}",
                ],
            )
        )
    lines = [f"## {name}: {result.get('tokens', 0):,} tokens"]
    if rows:
        lines.append(columns([list(COLUMNS), *(row for _, row in sorted(rows, key=lambda pair: pair[0]))]))
    ours = compare(name, result)
    if ours:
        stage = result["contestants"][ours.ours].get("stages", {})
        share = ", ".join(f"{k} {v:.0%}" for k, v in stage.get("share", {}).items() if v)
        plan = result.get("plan", {})
        lines.append(
            f"{ours.ours}: {share or 'stages not measured'}; plan built in {plan.get('build_ms', 0):.0f} ms, looked up "
            f"in {plan.get('lookup_us', 0):.1f} us"
        )
    for contestant, entry in result.get("contestants", {}).items():
        if moved := entry.get("stages", {}).get("quantize_bytes_per_s"):
            of = f", {moved / copy:.0%} of a copy's" if copy else ""
            lines.append(f"{contestant}: quantization moves {moved / 1e9:.0f} GB/s{of}")
    picked = result.get("contestants", {}).get("sdpa", {}).get("notes", {}).get("picked")
    if picked:
        lines.append(f"sdpa picked {picked}")
    return "\n".join([*lines, *others])


def tuning(name: str, result: dict) -> str:
    """Return one tuning cell: every configuration by time within its group, the shipped one (-0) marked."""
    rows, others = [["configuration", "ms", "spread", "error", "what"]], []
    timed = [(key.rpartition("-")[0], row["ms"], key, row) for key, row in result["contestants"].items() if "ms" in row]
    for _, _, key, row in sorted(timed, key=lambda item: item[:2]):
        what = ", ".join(f"{k} {v}" for k, v in row["config"].items())
        shipped = f"{key} (shipped)" if key.endswith("-0") else key
        rows.append([shipped, f"{row['ms']:.3f}", f"{row['spread']:.1%}", f"{row['error']:.1e}", what])
    for key, row in result["contestants"].items():
        if "ms" not in row:
            others.append(f"{key}: {row.get('status')} ({row.get('reason')})")
    table_text = columns(rows) if len(rows) > 1 else ""
    return "\n".join(filter(None, [f"## {name}", result.get("headline", ""), table_text, *others]))


def columns(rows: list[list[str]]) -> str:
    """Return rows as aligned text, the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    )


def _rows(result: dict) -> str:
    rows = result.get("contestants") or {}
    return "\n".join(
        f"{name}: {row.get('reason')}" for name, row in rows.items() if row.get("status") != "ok" and row.get("reason")
    )
