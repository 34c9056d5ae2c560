"""Every kernel variant compiled ahead of time for every card it is for: spills, registers, instructions.

What is compiled is what the real launchers launch (``kernels/bench/variants.py``). Values are compared with the
record; ``python -m kernels.machine_code --record`` writes it again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fpsattention.kernels.bench.machine_code import SHARED, main, name_of, recorded, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.slow,
]

RECORDED = {name_of(row): row for row in recorded()}
# Registers and instructions per score element may grow by this much over the record.
SLACK = 8
GROWTH = 1.05
# Another Triton than the record's schedules differently (3.6.0 on sm_120: up to 53 registers and a quarter more
# instructions, and two registers put aside outside of the loop): only what would ruin a kernel counts there.
GROWTH_OF_ANOTHER = 1.35
LOCAL_OF_ANOTHER = 16

# The matrix instructions of a kernel: these kinds and no others, so that nothing is multiplied in another precision.
FP8 = {89: "QMMA.16832.F32.E4M3.E4M3", 90: "QGMMA.64x{n}x32.F32.E4M3.E4M3", 100: "UTCQMMA"}
FP8[120] = FP8[89]
BF16 = {80: "HMMA.16816.F32.BF16", 90: "HGMMA.64x{n}x16.F32.BF16", 100: "UTCHMMA"}
BF16 |= dict.fromkeys((86, 89, 120), BF16[80])
INT8 = "IMMA.16832.S8.S8"


def matrix(row: dict) -> list[str]:
    """Return the patterns of the matrix instructions that a kernel must have and to which all of its own belong."""
    variant, kernel, card = row["variant"], row["kernel"], row["card"]
    if kernel == "packed_product":
        return [re.escape(BF16[80])]
    if kernel not in ("sparse_attention_forward", "backward_queries", "backward_keys"):
        return []
    if kernel.startswith("backward") or variant.startswith("bf16"):
        names = [BF16[card]]
    else:
        names = [FP8[card]] if variant.startswith("fp8") else [INT8, BF16[card]]
    return [re.escape(name).replace(r"\{n\}", r"\d+") for name in names]


@pytest.fixture(scope="session")
def reports(tmp_path_factory, show_at_end):
    """Compile everything once, in a process that no interpreter setting reaches, with an empty cache."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment["OMP_NUM_THREADS"] = "1"
    found = tmp_path_factory.mktemp("machine_code") / "rows.json"
    command = [sys.executable, "-m", "fpsattention.kernels.machine_code", "--json", str(found)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert found.exists(), done.stderr
    rows = json.loads(found.read_text())
    show_at_end("machine code, compiled ahead of time", table(rows))
    return {name_of(row): row for row in rows}


@pytest.fixture(scope="session")
def same_compiler():
    """Whether the record was made with the installed Triton."""
    from importlib.metadata import version

    from fpsattention.kernels.bench.machine_code import recorded_with

    return version("triton") == recorded_with()


def test_every_variant_is_recorded(reports):
    assert set(reports) == set(RECORDED), "run: python -m kernels.machine_code --record"


@pytest.mark.parametrize("name", RECORDED)
def test_machine_code(reports, same_compiler, name):
    row, known = reports[name], RECORDED[name]
    assert "error" not in row, row.get("error")
    assert row["shared"] <= SHARED[row["card"]][0] * 1024
    assert row["local"] <= (0 if same_compiler else LOCAL_OF_ANOTHER)
    if same_compiler:
        assert row["spills"] == 0
        assert row["registers"] <= min(known["registers"] + SLACK, 255)
        # As many programs at once as when it was tuned: their exponentials and products run over each other.
        assert row["programs"] >= known["programs"]

    patterns = matrix(row)
    for pattern in patterns:
        assert any(re.match(pattern, found) for found in row["mma"]), row["mma"]
    kinds = {re.match(r"\w+", re.sub(r"\\", "", pattern))[0] for pattern in patterns}
    assert {found.split(".")[0] for found in row["mma"]} == kinds

    if row["loop"]:
        allowed = known["loop"]["per_element"] * (GROWTH if same_compiler else GROWTH_OF_ANOTHER)
        assert row["loop"]["per_element"] <= allowed
        # Keys and values go to shared memory asynchronously, not through registers.
        assert row["loop"]["counts"].get("LDGSTS", 0) + row["loop"]["counts"].get("UTMALDG", 0) > 0
    # Where FP8 accumulates with fewer bits: everywhere but in 10.0's tensor memory.
    if row["constants"].get("KIND") == "fp8" and row["card"] != 100:
        assert row["carried"] == 0
    if row["descriptors"]:
        assert row["counts"].get("UTMALDG", 0) >= row["descriptors"]
    if row["kernel"] in ("write_tiles", "round_all", "round_rows"):
        # Neighbors are contiguous on both sides.
        assert any(found.startswith("LDG") for found in row["wide"]), row["wide"]
        assert any(found.startswith("STG") for found in row["wide"]), row["wide"]
    if row["kernel"] == "dequantize_units":
        # What is written weighs most; 4-bit codes come in words.
        assert "STG.E.128" in row["wide"], row["wide"]
        assert row["constants"]["BITS"] != 4 or "LDG.E.128" in row["wide"], row["wide"]


def test_a_sum_carried_in_the_accumulator_is_noticed():
    """What the compiler makes of the same kernel when nothing keeps product and sum apart, on a card where it folds."""
    code = (
        "import dataclasses; from fpsattention.kernels.attention import configs, triton_forward; "
        "from fpsattention.kernels.bench import machine_code, variants; "
        "shipped = configs.default; "
        "triton_forward.default = lambda *a, **k: dataclasses.replace(shipped(*a, **k), apart=None); "
        "v = next(v for v in variants.variants() if v.name == 'fp8 x1 128'); "
        "print(machine_code.examine(v.launches(89)[0], 89)['carried'])"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert int(done.stdout) >= 1, done.stderr


def test_an_unknown_option_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--record", "--match", "fp8"])
    assert "leave --arch and --match out" in capsys.readouterr().err
    for arguments, words in ((["--match", "xyz"], "contains 'xyz'"), (["--arch", "77"], "--arch 77 is no card")):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().err
