"""Where the time goes: the recorded machine code of the sm_90 kernels against the units of an H200.

Every unit of a multiprocessor needs some clocks per score element, one (query, key) pair that is computed, padding
included. The slowest unit bounds a kernel; how much of the others it hides is an assumption, so three are given.
What runs before and after the loop is left out. Measured times stand beside the predicted ones where a result file has
them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..grid import TokenGrid, choose_tiling
from .cells import window_for
from .figures import WITH_GRADIENT, cells_of, fastest, find
from .machine_code import Row, recorded
from .variants import PRODUCTS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- account:begin -->", "<!-- account:end -->"
GRID, HEADS, DIM = (21, 45, 80), 40, 128
SLOTS_OF_DENSE = 128


@dataclass(frozen=True)
class Card:
    """What an H200 gives: multiprocessors, clocks per second, and per multiprocessor and clock multiply-adds by matrix
    instruction, exponentials, instruction lanes, lanes of the half-rate unit; bytes per second of L2 and of memory."""

    # NVIDIA's data sheet.
    multiprocessors: int = 132
    # An assumption: the highest clock is 1.98 GHz, and matrix instructions on full power run below it.
    clock: float = 1.755e9
    # The data sheet's dense rates (1979 TFLOP/s in 8 bits, 989 in 16) at the 1.83 GHz that they are stated for.
    products: tuple[tuple[str, float], ...] = (("QGMMA", 4096.0), ("IGMMA", 4096.0), ("HGMMA", 2048.0))
    # CUDA's programming guide, arithmetic throughput of compute capability 9.0.
    special: float = 16.0
    lanes: float = 128.0
    half: float = 64.0
    # An assumption; the benchmark's cell 'ceilings' measures it.
    l2: float = 5.5e12
    # An assumption: 81 % of the data sheet's 4.8 TB/s, as quantization gathers rows. A plain copy should reach 4.3.
    memory: float = 3.9e12
    # An assumption: a matrix instruction with fewer columns takes the time of this many.
    narrowest: int = 32
    # An assumption: the dense BF16 attention that E compares with, while none was measured.
    dense_bf16: float = 600e12


@dataclass(frozen=True)
class Units:
    """Clocks per score element and multiprocessor by unit."""

    matrix: float
    special: float
    issue: float
    half: float
    l2: float

    @property
    def vector(self) -> float:
        """The slowest of the units that the softmax runs on."""
        return max(self.special, self.issue, self.half)

    @property
    def overlapped(self) -> float:
        """If everything runs at once."""
        return max(self.matrix, self.vector, self.l2)

    @property
    def in_turn(self) -> float:
        """If matrix instructions wait for the softmax and the other way round."""
        return max(self.matrix + self.vector, self.l2)

    @property
    def serial(self) -> float:
        """If nothing overlaps."""
        return max(self.matrix + self.special + self.issue, self.l2)

    @property
    def bound(self) -> str:
        """What bounds the kernel when matrix instructions and softmax take turns."""
        if self.l2 >= self.matrix + self.vector:
            return "L2"
        names = {"exponentials": self.special, "issue": self.issue, "half-rate unit": self.half}
        slowest = max(names, key=names.get)
        return f"matrix + {slowest}"


# By class, instructions that run at half the rate of a multiply-add (sm_90).
_HALF_CLASSES = ("max", "select", "bits", "convert")
_HALF_NAMES = ("IADD3", "LEA", "VIADD", "MOV")


def units(row: Row, card: Card) -> Units:
    """Return the clocks per score element of a recorded kernel's hot loop."""
    loop, constants = row["loop"], row["constants"]
    rates = dict(card.products)
    matrix = 0.0
    for name, count in loop["mma"].items():
        rows, columns, depth = map(int, re.search(r"\.(\d+)x(\d+)x(\d+)", name).groups())
        # A warpgroup's instruction is shared by four warps.
        products = count * rows * max(columns, card.narrowest) * depth / 4
        matrix += products / loop["elements"] / rates[name.split(".")[0]]
    classes = loop["classes"]
    lanes = 32 / loop["elements"]
    half = sum(classes.get(name, 0) for name in _HALF_CLASSES)
    half += sum(loop["counts"].get(name, 0) for name in _HALF_NAMES) * lanes
    kept = constants.get("BLOCK_M") or constants["BLOCK"]
    width = 1 if "fp8" in row["variant"] and row["kernel"] == "sparse_attention_forward" else 2
    # Two rows of D numbers are loaded per key (or, in dK and dV, per query) and used by the rows that a program keeps.
    loaded = 2 * constants["D"] * width / kept
    return Units(
        matrix=matrix,
        special=(classes.get("ex2", 0) + classes.get("special", 0)) / card.special,
        issue=loop["per_element"] / card.lanes,
        half=half / card.half,
        l2=loaded / (card.l2 / card.multiprocessors / card.clock),
    )


@dataclass(frozen=True)
class Case:
    """A line of the account: recorded variants and kernels, the benchmark's name for it (empty: it is not shipped, so
    the benchmark does not time it), slots of its tiles."""

    title: str
    parts: tuple[tuple[str, str], ...]
    contestant: str
    slots: int
    densities: tuple[int, ...]
    direction: str = "forward"


FORWARD = "sparse_attention_forward"
PARTS = {FORWARD: "forward", "backward_queries": "dQ", "backward_keys": "dK, dV"}
# Products over the head dimension that count as work (two of a forward, five of a backward); the others of a kernel are
# computed twice.
COUNTED = {FORWARD: 2, "backward_queries": 1, "backward_keys": 4}
SPARSE = (25, 15, 10, 5)
# The candidate that loads half as much from L2.
LARGE = "[128x128 8w2s]"


def _both(slots: int) -> tuple[tuple[str, str], ...]:
    backward = f"backward fp8 x1 {slots}"
    return ((f"fp8 x1 {slots}", FORWARD), (backward, "backward_queries"), (backward, "backward_keys"))


CASES = (
    Case("FP8 dense", (("fp8 x1 dense", FORWARD),), "triton-fp8-128", SLOTS_OF_DENSE, (100,)),
    Case("FP8 dense, candidate", ((f"fp8 x1 dense {LARGE}", FORWARD),), "", SLOTS_OF_DENSE, (100,)),
    Case("FP8, 64 slots", (("fp8 x1 64", FORWARD),), "triton-fp8-64", 64, SPARSE),
    Case("FP8, 128 slots", (("fp8 x1 128", FORWARD),), "triton-fp8-128", 128, SPARSE),
    Case("FP8, 128 slots, candidate", ((f"fp8 x1 128 {LARGE}", FORWARD),), "", 128, SPARSE),
    Case("BF16, 128 slots", (("bf16 128", FORWARD),), "triton-bf16-128", 128, (15,)),
    Case("FP8 with gradient, 64 slots", _both(64), "triton-fp8-64", 64, (15,), "backward"),
    Case("FP8 with gradient, 128 slots", _both(128), "triton-fp8-128", 128, (15,), "backward"),
)


def rows_of(case: Case, rows: list[Row]) -> list[Row]:
    """Return the recorded rows of a case's kernels on sm_90; raises KeyError for one that is not recorded.

    A candidate for dense lists has the loop of that for windows on 128 slots: it stands in while only it is recorded.
    """
    found = {(row["variant"], row["kernel"]): row for row in rows if row["card"] == 90}
    alike = [(name.replace(" dense [", " 128 ["), kernel) for name, kernel in case.parts]
    return [found[part if part in found else other] for part, other in zip(case.parts, alike)]


def pairs(slots: int, density: int) -> tuple[float, float]:
    """Return the computed (query, key) pairs of one head at 720p, padding included, and the density in live pairs."""
    tokens = GRID[0] * GRID[1] * GRID[2]
    if density == 100:
        return float(-(-tokens // SLOTS_OF_DENSE) * SLOTS_OF_DENSE) ** 2, 1.0
    window = window_for(GRID, slots, density)
    tiles = choose_tiling(TokenGrid(*GRID), slots).count
    return float(tiles * math.prod(window.tiles)) * slots**2, window.density


def around(case: Case, card: Card) -> float:
    """Return the seconds of quantizing and tiling around the products: their memory traffic alone."""
    bytes_each = 0
    if case.parts[0][0].startswith("fp8"):
        # K and V are read for their statistics; then q, k, v are read and their codes written.
        bytes_each += 2 * 2 + 3 * 2 + 3
    if case.direction == "backward":
        # The same statistics; q, k, v and the gradient are read and written as 16-bit tiles; the output is read.
        bytes_each += 2 * 2 + 4 * (2 + 2) + 2
    return math.prod(GRID) * HEADS * DIM * bytes_each / card.memory


@dataclass(frozen=True)
class Prediction:
    """One call at 720p, 40 heads: the exact density, milliseconds under the three assumptions, and of those in turn
    the TFLOP/s of live pairs (work counts once: a backward is 2.5 forwards) and E."""

    density: float
    overlapped: float
    in_turn: float
    serial: float
    tflops: float
    efficiency: float


def predict(case: Case, density: int, rows: list[Row], card: Card) -> Prediction:
    """Return what the model says of a case at a target density in percent."""
    each = [units(row, card) for row in rows_of(case, rows)]
    count, exact = pairs(case.slots, density)
    clocks = count * HEADS / card.multiprocessors / card.clock
    extra = around(case, card)
    overlapped, in_turn, serial = (
        1e3 * (clocks * sum(getattr(unit, name) for unit in each) + extra)
        for name in ("overlapped", "in_turn", "serial")
    )
    live = math.prod(GRID) ** 2 * exact * HEADS
    work = 4.0 * DIM * live * (WITH_GRADIENT if case.direction == "backward" else 1.0)
    dense = 1e3 * 4.0 * DIM * live / exact / card.dense_bf16
    return Prediction(exact, overlapped, in_turn, serial, work / in_turn / 1e9, dense / in_turn * exact)


def measured(case: Case, density: int, result: dict) -> str:
    """Return the measured milliseconds and E of a case in a benchmark's result, as text."""
    cell = find(result, density=density, direction=case.direction, heads=HEADS, grid=GRID)
    entry = (cell or {}).get("contestants", {}).get(case.contestant, {})
    if entry.get("status") != "ok" or not entry.get("ms"):
        return "-"
    dense = fastest(cell, "dense")
    efficiency = f", E {dense[1]['ms'] / entry['ms'] * entry['density']:.2f} against {dense[0]}" if dense else ""
    return f"{entry['ms']:.2f} ms{efficiency}"


def card_of(result: dict | None) -> Card:
    """Return the card with the rates of L2 and of a copy that a benchmark's result measured in place of the assumed."""
    for cell in cells_of(result, "ceilings").values() if result else ():
        rates = {name: cell.get(key, {}).get("tb_per_s") for name, key in (("l2", "l2"), ("memory", "copy"))}
        return replace(Card(), **{name: rate * 1e12 for name, rate in rates.items() if rate})
    return Card()


def block(result: dict | None = None, rows: list[Row] | None = None, card: Card | None = None) -> str:
    """Return the account as markdown: clocks by unit, then milliseconds, beside those of a benchmark's ``result``."""
    card, rows = card or card_of(result), recorded() if rows is None else rows
    assumed = Card()
    l2, memory = (
        f"{rate / 1e12:.1f} TB/s, {'assumed' if rate == known else 'measured'}"
        for rate, known in ((card.l2, assumed.l2), (card.memory, assumed.memory))
    )
    lines = [
        "Clocks per score element and multiprocessor by unit, from the machine code of the hot loop; then TFLOP/s of "
        "computed pairs if everything overlaps, if matrix instructions and softmax take turns, if nothing overlaps. "
        "Products that a kernel computes again are no work. The candidate has 128 x 128 blocks and 8 warps: half the "
        f"traffic from L2, one program at once. Rates: L2 {l2}; memory {memory}; clock {card.clock / 1e9:.3f} GHz, "
        "assumed; the rest is NVIDIA's data sheet and programming guide.",
        "",
        "| kernel | programs at once | products | again | matrix | exp | issue | half-rate | L2 | bound by | overlap "
        "| turns | nothing |",
        "|---" * 13 + "|",
    ]
    rate = card.multiprocessors * card.clock / 1e12
    told = set()
    for case in CASES:
        for row in rows_of(case, rows):
            name = (row["variant"], row["kernel"])
            if name in told:
                continue
            told.add(name)
            unit = units(row, card)
            counted = COUNTED[row["kernel"]]
            work = 2.0 * counted * DIM
            title = row["variant"].removeprefix("backward ").replace(LARGE, "candidate")
            cells = [f"{title}: {PARTS[row['kernel']]}", str(row["programs"])]
            cells += [str(counted), str(PRODUCTS[row["kernel"]] - counted)]
            cells += [f"{x:.3f}" for x in (unit.matrix, unit.special, unit.issue, unit.half, unit.l2)] + [unit.bound]
            cells += [f"{work * rate / x:.0f}" for x in (unit.overlapped, unit.in_turn, unit.serial)]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"One call at 720p ({'x'.join(map(str, GRID))} latent tokens), {HEADS} heads, quantization included; predicted "
        f"E against dense BF16 at an assumed {card.dense_bf16 / 1e12:.0f} TFLOP/s. With gradient: forward and "
        f"backward, {WITH_GRADIENT} forwards of work.",
        "",
        f"| call | density | predicted ms (overlap ... nothing) | TFLOP/s | E |{' measured |' if result else ''}",
        "|---" * (6 if result else 5) + "|",
    ]
    for case in CASES:
        for density in case.densities:
            said = predict(case, density, rows, card)
            forward = case.direction == "forward"
            cells = [case.title, f"{100 * said.density:.1f} %"]
            cells += [f"{said.in_turn:.2f} ({said.overlapped:.2f} ... {said.serial:.2f})", f"{said.tflops:.0f}"]
            cells += [
                f"{said.efficiency:.2f}" if forward else "-",
                *([measured(case, density, result)] if result else []),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def place(text: str, account: str) -> str:
    """Return ``text`` with the block between its markers replaced; raises ValueError if it has no such markers."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no lines {BEGIN} and {END}; add them where the account belongs.")
    return f"{head}{begin}\n{account}{end}{tail}"
