"""Compiles every variant for every card it is for, and reports what the machine code is made of. Needs no GPU."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import sass
from .recording import Launch, compiled, specialization
from .variants import VARIANTS

COLUMNS = ("mma", "ex2", "max", "float", "convert", "select", "bits", "integer", "shuffle", "shared", "global", "wait")


def _tool(*command: str) -> str:
    from triton.backends import nvidia

    path = str(Path(nvidia.__file__).parent / "bin" / command[0])
    return subprocess.run([path, *command[1:]], capture_output=True, text=True, check=True).stdout


def examine(launch: Launch, capability: int) -> dict[str, Any]:
    """Return registers, local and shared memory, instruction counts and the hot loop of one compiled launch."""
    kernel = compiled(launch, capability)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _tool("cuobjdump", "-res-usage", str(cubin))))
        items = sass.parse(_tool("nvdisasm", "-c", str(cubin)))
    code = [item for item in items if isinstance(item, sass.Instruction)]
    counts = sass.counts(code)
    setmaxnreg = re.findall(r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32\s+(\d+)", kernel.asm["ptx"])
    return {
        "kernel": launch.name,
        "warps": kernel.metadata.num_warps,
        "registers": int(usage["REG"]),
        "setmaxnreg": sorted({int(n) for n in setmaxnreg}),
        "stack": int(usage["STACK"]),
        "local": int(usage["LOCAL"]),
        "spills": counts.get("STL", 0) + counts.get("LDL", 0),
        "shared": kernel.metadata.shared,
        "mma": sorted({i.name for i in code if sass.classify(i.name) == "mma"}),
        "wide": sorted({i.name for i in code if re.match(r"(LDG|STG|LDGSTS)\b.*(64|128)", i.name)}),
        "counts": counts,
        "loop": _loop(launch, kernel, sass.hot_loops(sass.blocks(items))),
    }


def _loop(launch: Launch, kernel: Any, found: list[list[sass.Instruction]]) -> dict[str, Any] | None:
    """Return the hottest loop: instructions per thread by class and by name, and per score element.

    A score element is one (query, key) pair. With ``n`` instructions per thread and pass, a warp issues 32 lanes each;
    divided by the elements that a warp works off in a pass this is what kernels' issue slots (128 lanes a clock and SM)
    are paid with. Elements follow from the products of the matrix instructions, so unrolling does not matter.
    """
    if not found:
        return None
    code = found[0]
    constants = launch.constants
    per_element = PRODUCTS.get(launch.name, 2) * constants.get("D", 128)
    elements = sass.products(code) / per_element
    if not elements:  # sm_100's instructions do not name their shape: one block a pass
        threads = kernel.metadata.num_warps * 32
        elements = constants.get("BLOCK_M", 0) * constants.get("BLOCK_N", 0) / (threads / 32)
    classes = sass.class_counts(code)
    lanes = 32 / elements if elements else 0.0
    return {
        "loops": len(found),
        "instructions": len(code),
        "elements_per_warp": elements,
        "per_element": round(len(code) * lanes, 3),
        "classes": {name: round(n * lanes, 3) for name, n in classes.items()},
        "counts": sass.counts(code),
    }


# Matrix products over the head dimension per score element: Q K and P V in the forward.
PRODUCTS: dict[str, int] = {}


def _work(number: int) -> tuple[str, dict[str, Any]]:
    key, launch, capability = _TASKS[number]
    try:
        return key, examine(launch, capability)
    except Exception as error:  # the compiler fails in many ways; each belongs into the table
        return key, {"kernel": launch.name, "error": f"{type(error).__name__}: {str(error).strip()[-600:]}"}


_TASKS: list[tuple[str, Launch, int]] = []


def reports(names: list[str], cards: list[int] | None = None, processes: int = 2) -> list[dict[str, Any]]:
    """Return one report per kernel of every named variant and card; each distinct compilation is done once."""
    rows, seen = [], set()
    _TASKS.clear()
    for name in names:
        variant = VARIANTS[name]
        for capability in variant.cards:
            if cards and capability not in cards:
                continue
            for launch in variant.launches(capability):
                key = specialization(launch, capability)
                rows.append({"variant": name, "card": capability, "key": key})
                if key not in seen:
                    seen.add(key)
                    _TASKS.append((key, launch, capability))
    # A forked process has the launches; nothing was compiled before, so no compiler thread is lost in it.
    with multiprocessing.get_context("fork").Pool(max(1, min(processes, len(_TASKS)))) as pool:
        done = dict(pool.imap_unordered(_work, range(len(_TASKS))))
    result, told = [], set()
    for row in rows:
        report = {"variant": row["variant"], "card": row["card"], **done[row["key"]]}
        identity = (report["variant"], report["card"], row["key"])
        if identity not in told:
            told.add(identity)
            result.append(report)
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """Return the reports as a text table; the classes are warp-instruction lanes per score element in the hot loop."""
    head = ["variant", "kernel", "card", "regs", "stack", "spill", "smem", "loop", "i/elem", *COLUMNS, "mma"]
    lines = [head]
    for row in rows:
        start = [row["variant"], row["kernel"], f"sm_{row['card']}"]
        if "error" in row:
            lines.append([*start, row["error"].splitlines()[-1]])
            continue
        registers = str(row["registers"])
        if row["setmaxnreg"]:
            registers += "/" + "/".join(map(str, row["setmaxnreg"]))
        cells = [registers, str(row["stack"] + row["local"]), str(row["spills"]), str(row["shared"])]
        loop = row["loop"]
        if loop:
            cells += [str(loop["instructions"]), f"{loop['per_element']:.2f}"]
            cells += [f"{loop['classes'].get(name, 0):.2f}" for name in COLUMNS]
        else:
            cells += ["-"] * (2 + len(COLUMNS))
        kinds = sorted({".".join(name.split(".")[:2]) for name in row["mma"]})
        lines.append([*start, *cells, " ".join(kinds) or "-"])
    widths = [
        max((len(line[i]) for line in lines if i < len(line) and len(line) == len(head)), default=0)
        for i in range(len(head))
    ]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table of all variants, or of those that match; return 1 if one does not compile."""
    parser = argparse.ArgumentParser(prog="machine_code", description=__doc__)
    parser.add_argument("--arch", type=int, action="append", help="a compute capability such as 90; may be repeated")
    parser.add_argument("--match", default="", help="only variants whose name contains this")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--loop", action="store_true", help="also print the hot loop's instructions by name")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    names = [name for name in VARIANTS if options.match in name]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        rows = reports(names, options.arch, options.processes)
    write = sys.stdout.write
    write(table(rows) + "\n")
    if options.loop:
        for row in rows:
            if row.get("loop"):
                named = ", ".join(f"{name} {n}" for name, n in row["loop"]["counts"].items())
                write(f"\n{row['variant']} {row['kernel']} sm_{row['card']}: {named}\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any("error" in row for row in rows))
