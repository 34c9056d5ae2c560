"""Compiles the Triton forward ahead of time and prints what the machine code is made of, as JSON. Needs no GPU.

Run by test_compiled.py in a process of its own, without ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton
from fpsattention.kernels.attention.triton_forward import launch_options
from fpsattention.kernels.attention.triton_kernels import sparse_attention_forward
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(nvidia.__file__).parent / "bin"
VARIANTS = ("bf16", "fp8 tile scales", "fp8 token scales")


def arguments(variant: str, slots: int, dim: int) -> tuple[dict, dict, dict]:
    """Return the signature, the constants and the attributes that a launch with aligned tensors would give."""
    fp8 = variant != "bf16"
    constants = {
        "FP8": fp8,
        "SCALE_PER_TOKEN": variant == "fp8 token scales",
        "STATS": True,
        "SLOTS": slots,
        "D": dim,
        "v_row" if fp8 else "v_col": 1,
        **{name: value for name, value in launch_options(slots).items() if name.startswith("BLOCK")},
    }
    if not fp8:
        constants.update(q_scale_ptr=None, k_scale_ptr=None, v_scale_ptr=None)
    types = {"scale_log2": "fp32", "out_ptr": "*bf16", "lse_ptr": "*fp32", "rowmax_ptr": "*fp32"}
    types.update({f"{x}_ptr": "*fp8e4nv" if fp8 else "*bf16" for x in "qkv"})
    types.update({f"{x}_scale_ptr": "*fp32" for x in "qkv"})
    signature = {}
    for name in sparse_attention_forward.arg_names:
        default = "*i32" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else types.get(name, default)
    # Pointers and strides are multiples of 16; the plain counts are not specialized.
    aligned = re.compile(r"\w+_ptr|[qkv]_(batch|head|row|col)")
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, (name, kind) in enumerate(signature.items())
        if kind != "constexpr" and aligned.fullmatch(name)
    }
    return signature, constants, attributes


def report(variant: str, capability: int, slots: int, dim: int = 128) -> dict:
    """Return registers, local memory, shared memory and instruction counts of one compiled kernel."""
    signature, constants, attributes = arguments(variant, slots, dim)
    options = {name: value for name, value in launch_options(slots).items() if name.startswith("num")}
    source = ASTSource(fn=sparse_attention_forward, signature=signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])

        def tool(*command: str) -> str:
            path = str(TOOLS / command[0])
            return subprocess.run([path, *command[1:], str(cubin)], capture_output=True, text=True, check=True).stdout

        usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", tool("cuobjdump", "-res-usage")))
        code = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", tool("nvdisasm", "-c"), re.MULTILINE)
    return {
        "registers": int(usage["REG"]),
        "stack": int(usage["STACK"]),
        "local": int(usage["LOCAL"]),
        "shared": kernel.metadata.shared,
        "matrix": sorted({name for name in code if "MMA" in name}),
        "counts": Counter(name.split(".")[0] for name in code),
    }


def main() -> None:
    """Print one report per variant, capability and slot count."""
    reports = {
        f"{variant}, sm_{capability}, {slots} slots": report(variant, capability, slots)
        for capability in (89, 90)
        for slots in (64, 128)
        for variant in VARIANTS
    }
    json.dump(reports, sys.stdout)


if __name__ == "__main__":
    main()
