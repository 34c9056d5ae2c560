"""Reading machine code: loops from the control flow, instruction classes, products, occupancy. No compiler needed."""

from __future__ import annotations

import pytest
from fpsattention.kernels.bench import sass
from fpsattention.kernels.bench.machine_code import programs_per_multiprocessor

# A loop around .L_x_1 whose wait was moved behind the end, a wait loop in front, and a loop that multiplies nothing.
LISTING = """
.L_x_0:
        /*0000*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2] ;
        /*0010*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R2] ;
        /*0030*/              @!P1 BRA `(.L_x_3) ;
.L_x_2:
        /*0040*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R24, R4, gdesc[UR4], !UPT ;
        /*0050*/                   MUFU.EX2 R5, R6 ;
        /*0060*/                   BRA.DIV UR4, `(.L_x_5) ;
        /*0070*/               @P2 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R2] ;
        /*00a0*/              @!P1 BRA `(.L_x_3) ;
        /*00b0*/                   BRA `(.L_x_2) ;
.L_x_5:
        /*00c0*/                   WARPSYNC.COLLECTIVE R3, `(.L_x_6) ;
        /*00d0*/                   BRA `(.L_x_2) ;
"""


def test_the_hot_loop_is_found_across_moved_code():
    (loop,) = sass.hot_loops(sass.blocks(sass.parse(LISTING)))
    names = [instruction.name.split(".")[0] for instruction in loop]
    # The wait that was moved away is left at once and only its way back counts; parted threads never happen.
    assert names == ["SYNCS", "BRA", "QGMMA", "MUFU", "BRA", "BRA", "BRA"]
    assert sass.class_counts(loop) == {"branch": 4, "wait": 1, "mma": 1, "ex2": 1}
    assert sass.products(loop) == 64 * 128 * 32 // 4


def test_nested_loops_give_the_inner_one():
    listing = """
.L_x_0:
        /*0000*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
.L_x_1:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/                   FADD R1, R2, R3 ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   BRA.U UP0, `(.L_x_0) ;
        /*0050*/                   EXIT ;
"""
    (loop,) = sass.hot_loops(sass.blocks(sass.parse(listing)))
    assert sass.counts(loop) == {"HMMA": 1, "FADD": 1, "BRA": 1}
    assert sass.products(loop) == 16 * 8 * 16


def test_code_without_products_has_no_hot_loop():
    listing = "\n.L_x_0:\n        /*0000*/                   FADD R1, R2, R3 ;\n"
    listing += "        /*0010*/               @P0 BRA `(.L_x_0) ;\n        /*0020*/                   EXIT ;\n"
    assert sass.hot_loops(sass.blocks(sass.parse(listing))) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MUFU.EX2", "ex2"),
        ("MUFU.LG2", "special"),
        ("FMNMX", "max"),
        ("F2FP.SATFINITE.E4M3.F32.PACK_AB_MERGE_C", "convert"),
        ("UTCQMMA", "mma"),
        ("UIADD3", "integer"),
        ("UTMALDG.2D", "global"),
        ("LDGDEPBAR", "wait"),
        ("FROBNICATE", "other"),
    ],
)
def test_classes(name, kind):
    assert sass.classify(name) == kind


def test_a_mnemonic_has_one_class():
    names = [name for names in sass.CLASSES.values() for name in names.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("registers", "warps", "shared", "programs"),
    [(168, 4, 72 * 1024, 3), (169, 4, 72 * 1024, 2), (168, 4, 100 * 1024, 2), (255, 8, 0, 1), (16, 1, 0, 32)],
)
def test_how_many_programs_fit(registers, warps, shared, programs):
    row = {"registers": registers, "warps": warps, "shared": shared}
    assert programs_per_multiprocessor(row, 90) == programs
