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
import time
from collections import Counter
from pathlib import Path
from typing import Any

from . import sass
from .recording import Launch, compiled, specialization
from .variants import PRODUCTS, Variant, cards_of, variants

# What is recorded with the sources: the values of the pinned Triton, one row per kernel.
RECORD = Path(__file__).resolve().with_name("machine_code.json")
# Shared memory in bytes by compute capability: of one program, and of a multiprocessor (each program takes 1 KB more).
SHARED = {80: (163, 164), 86: (99, 100), 89: (99, 100), 90: (227, 228), 100: (227, 228), 120: (99, 100)}
WARPS = {80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}
COLUMNS = ("mma", "ex2", "max", "float", "convert", "select", "bits", "integer", "shuffle", "shared", "global", "wait")

Row = dict[str, Any]


def _tool(*command: str) -> str:
    from triton.backends import nvidia

    path = str(Path(nvidia.__file__).parent / "bin" / command[0])
    return subprocess.run([path, *command[1:]], capture_output=True, text=True, check=True).stdout


def examine(launch: Launch, capability: int) -> Row:
    """Return registers, local and shared memory, instruction counts and the hot loop of one compiled launch."""
    began = time.perf_counter()
    kernel = compiled(launch, capability)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _tool("cuobjdump", "-res-usage", str(cubin))))
        items = sass.parse(_tool("nvdisasm", "-c", str(cubin)))
    code = [item for item in items if isinstance(item, sass.Instruction)]
    counts = sass.counts(code)
    ptx = kernel.asm["ptx"]
    row = {
        "kernel": launch.name,
        "seconds": round(seconds, 1),
        "constants": {k: v for k, v in launch.constants.items() if isinstance(v, int | float | str)},
        "descriptors": sum(type(arg).__name__ == "TensorDescriptor" for arg in launch.args),
        "warps": int(re.search(r"\.(?:req|max)ntid (\d+)", ptx)[1]) // 32,
        "registers": int(usage["REG"]),
        # Registers that warps take or give back when they specialize.
        "moved": sorted({int(n) for n in re.findall(r"setmaxnreg\.\w+\.sync\.aligned\.u32\s+(\d+)", ptx)}),
        "local": int(usage["STACK"]) + int(usage["LOCAL"]),
        "spills": counts.get("STL", 0) + counts.get("LDL", 0),
        "shared": kernel.metadata.shared,
        "mma": sorted({i.name for i in code if sass.classify(i.name) == "mma"}),
        "carried": carried_sums(kernel.asm["ttgir"]),
        "wide": sorted({i.name for i in code if re.match(r"(LDG|STG|LDGSTS)\b.*\.(64|128)\b", i.name)}),
        "counts": counts,
        "loop": _loop(launch, sass.hot_loops(sass.blocks(items)), kernel.metadata.num_warps),
    }
    row["programs"] = programs_per_multiprocessor(row, capability)
    return row


def carried_sums(ttgir: str) -> int:
    """Return how many products of Triton's intermediate code add onto a rescaled sum inside the matrix instruction.

    An FP8 accumulator drops low bits, so there must be none: a running sum is multiplied, then a product is added.
    """
    rescaled = set(re.findall(r"(%\w+)(?::\d+)? = arith\.mulf", ttgir))
    sums = re.findall(r"(?:tt\.dot|warp_group_dot) %[\w#]+, %[\w#]+, (%\w+)", ttgir)
    return sum(name in rescaled for name in sums)


def programs_per_multiprocessor(row: Row, capability: int) -> int:
    """Return how many programs of a kernel fit on a multiprocessor by its registers, shared memory and warps."""
    registers = -(-row["registers"] // 8) * 8 * 32 * row["warps"]
    memory = row["shared"] + 1024
    return min(65536 // registers, SHARED[capability][1] * 1024 // memory, WARPS[capability] // row["warps"], 32)


def _loop(launch: Launch, found: list[list[sass.Instruction]], warps: int) -> Row | None:
    """Return the hot loop: instructions per thread by class and by name, and per score element.

    A score element is one (query, key) pair. ``n`` instructions per thread and pass are ``n`` warp instructions of 32
    lanes each; over the elements that a warp works off in a pass, that is what a multiprocessor's 128 lanes a clock are
    spent on. Both sides of a branch count; multiply-adds are those of the matrix instructions.
    """
    if not found or launch.name not in PRODUCTS:
        return None
    code = found[0]
    constants = launch.constants
    step = constants.get("BLOCK_M", constants.get("BLOCK", 0)) * (constants.get("BLOCK_N") or constants["STEP"]) / warps
    step *= 2 if constants.get("PAIRS") else 1
    # The assembler may unroll, and warps that specialize share a step with others: the products tell how far.
    done = sass.products(code) / (PRODUCTS[launch.name] * constants["D"]) / step
    elements = step * (max(1, round(done)) if done > 0.75 or not done else 1 / round(1 / done))
    lanes = 32 / elements
    return {
        "instructions": len(code),
        "elements": elements,
        "per_element": round(len(code) * lanes, 3),
        "mma": dict(Counter(i.name for i in code if sass.classify(i.name) == "mma")),
        "classes": {name: round(n * lanes, 3) for name, n in sass.class_counts(code).items()},
        "counts": sass.counts(code),
    }


def _work(number: int) -> tuple[str, Row]:
    key, launch, capability = _TASKS[number]
    try:
        return key, examine(launch, capability)
    except Exception as error:  # the compiler fails in many ways; each belongs into the table
        chain = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        told = "\n".join(f"{type(e).__name__}: {str(e).strip()[-800:]}" for e in chain)
        return key, {"kernel": launch.name, "error": told}


_TASKS: list[tuple[str, Launch, int]] = []


def reports(chosen: list[Variant], cards: list[int] | None = None, processes: int = 2) -> list[Row]:
    """Return one row per kernel of every variant and card; what is the same compilation is compiled once."""
    rows: list[tuple[str, int, str]] = []
    _TASKS.clear()
    for variant in chosen:
        for capability in cards_of(variant):
            if cards and capability not in cards:
                continue
            for launch in variant.launches(capability):
                key = specialization(launch, capability)
                if all(key != task[0] for task in _TASKS):
                    _TASKS.append((key, launch, capability))
                rows.append((variant.name, capability, key))
    if not rows:
        return []
    # A forked process has the launches; nothing was compiled before, so it inherits no compiler's threads.
    with multiprocessing.get_context("fork").Pool(max(1, min(processes, len(_TASKS)))) as pool:
        done = dict(pool.imap_unordered(_work, range(len(_TASKS))))
    return [{"variant": name, "card": card, **done[key]} for name, card, key in dict.fromkeys(rows)]


def name_of(row: Row) -> str:
    """Return what tells a row from every other."""
    return f"{row['variant']}, {row['kernel']}, sm_{row['card']}"


def table(rows: list[Row]) -> str:
    """Return the rows as a text table; classes are lanes per score element in the hot loop, see ``_loop``."""
    head = [
        "variant",
        "kernel",
        "card",
        "regs",
        "local",
        "spill",
        "shared",
        "fit",
        "loop",
        "i/elem",
        *COLUMNS,
        "matrix",
    ]
    lines = [head]
    for row in rows:
        start = [row["variant"], row["kernel"].replace("sparse_attention_", ""), f"sm_{row['card']}"]
        if "error" in row:
            said = [line for line in row["error"].splitlines() if line.strip(" ^")]
            lines.append([*start, f"does not compile: {said[-1].strip()[:150]}"])
            continue
        registers = "/".join(map(str, [row["registers"], *row["moved"]]))
        cells = [registers, *(str(row[k]) for k in ("local", "spills", "shared", "programs"))]
        loop = row["loop"]
        if loop:
            cells += [str(loop["instructions"]), f"{loop['per_element']:.2f}"]
            cells += [f"{loop['classes'].get(name, 0):.2f}" for name in COLUMNS]
        else:
            cells += ["-"] * (2 + len(COLUMNS))
        kinds = sorted({".".join(name.split(".")[:2]) for name in row["mma"]})
        lines.append([*start, *cells, " ".join(kinds) or "-"])
    full = [line for line in lines if len(line) == len(head)]
    widths = [max(len(line[column]) for line in full) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def record(rows: list[Row]) -> None:
    """Write the rows into the record, one line each; raises ValueError if one did not compile."""
    import triton

    for row in rows:
        if "error" in row:
            raise ValueError(f"{name_of(row)} does not compile ({row['error']}); nothing was recorded.")
    kept = [{k: v for k, v in row.items() if k not in ("counts", "wide", "seconds")} for row in rows]
    lines = ",\n".join(json.dumps(row) for row in kept)
    RECORD.write_text(f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def recorded() -> list[Row]:
    """Return the recorded rows."""
    return json.loads(RECORD.read_text(encoding="utf-8"))["rows"]


def recorded_with() -> str:
    """Return the version of Triton that the record was made with."""
    return json.loads(RECORD.read_text(encoding="utf-8"))["triton"]


def _account(result: Path | None, write: bool) -> int:
    from . import account
    from .store import newest, read_json

    found = (result, read_json(result)) if result else newest()
    text = account.block(found and found[1])
    sys.stdout.write(text)
    if write:
        account.README.write_text(account.place(account.README.read_text(encoding="utf-8"), text), encoding="utf-8")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Print the table of all variants, or of those that match; return 1 if one does not compile."""
    parser = argparse.ArgumentParser(prog="machine_code", description=__doc__)
    parser.add_argument("--arch", type=int, action="append", help="a compute capability such as 90; may be repeated")
    parser.add_argument("--match", default="", help="only variants whose name contains this")
    parser.add_argument("--json", type=Path, help="also write every number to this file")
    parser.add_argument("--loop", action="store_true", help="also print the hot loops' instructions by name")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}, which the tests compare with")
    parser.add_argument(
        "--account", action="store_true", help="compile nothing; print the account of the recorded kernels' time"
    )
    parser.add_argument("--result", type=Path, help="with --account: a benchmark's result to put beside it")
    parser.add_argument("--write", action="store_true", help="with --account: also put it into kernels/README.md")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.record and (options.arch or options.match):
        parser.error("--record takes every variant and card; leave --arch and --match out")
    if options.account:
        return _account(options.result, options.write)
    chosen = [variant for variant in variants() if options.match in variant.name]
    known = {card for variant in variants() for card in cards_of(variant)}
    if not chosen:
        parser.error(f"no variant's name contains '{options.match}'; names look like '{variants()[0].name}'")
    if unknown := set(options.arch or ()) - known:
        parser.error(f"--arch {min(unknown)} is no card of any variant; choose among {sorted(known)}")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        rows = reports(chosen, options.arch, options.processes)
    write = sys.stdout.write
    write(table(rows) + "\n")
    for error in dict.fromkeys(row["error"] for row in rows if "error" in row):
        write(f"\n{error}\n")
    if options.loop:
        for row in rows:
            if row.get("loop"):
                named = ", ".join(f"{name} {n}" for name, n in row["loop"]["counts"].items())
                write(f"\n{name_of(row)}: {named}\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.record:
        record(rows)
    return int(any("error" in row for row in rows))
