"""Machine code as numbers: instruction counts of a kernel and of its hottest loop, from ``nvdisasm``'s listing.

Loops come from the control flow (natural loops of back edges), not from the order of the text, because the assembler
moves wait loops to the end of a kernel.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

# By the first part of a mnemonic; a leading U (the same on the warp's uniform unit) is left out where it is not listed.
# MUFU.EX2, the exponential, is the class "ex2", and every ...MMA is "mma".
CLASSES: dict[str, str] = {
    "special": "MUFU",
    "max": "FMNMX FMNMX3 VIMNMX VIMNMX3 IMNMX HMNMX2 VHMNMX",
    "float": "FFMA FMUL FADD FFMA2 FMUL2 FADD2 HADD2 HFMA2 HMUL2 FHADD FHFMA FSWZADD DADD DMUL DFMA",
    "convert": "F2FP F2F F2I F2IP I2F I2FP I2I I2IP FRND",
    "shuffle": "SHFL REDUX CREDUX VOTE MATCH MOVM",
    "select": "SEL FSEL ISETP FSETP FSET HSETP2 PLOP3 P2R R2P ICMP VOTEU",
    "bits": "PRMT LOP3 LOP SHF BREV FLO POPC SGXT BMSK",
    "shared": "LDS STS LDSM STSM ATOMS LDTM STTM",
    "global": "LDG STG LDGSTS LD ST ATOM ATOMG RED LDC ULDC LDCU LDL STL CCTL UTMALDG UTMASTG UTMAPF UTMACCTL UBLKCP",
    "wait": "BAR WARPGROUP SYNCS DEPBAR LDGDEPBAR WARPSYNC FENCE MEMBAR ARRIVES NANOSLEEP USETMAXREG BSSY BSYNC "
    "ACQBULK ERRBAR CGAERRBAR UTCBAR UTMACMDFLUSH UTCATOMSWS ELECT YIELD ENDCOLLECTIVE WARPGROUPSET UCGABAR_ARV "
    "UCGABAR_WAIT PREEXIT VIRTCOUNT",
    "branch": "BRA BRX EXIT CALL RET NOP BREAK BPT KILL JMP",
    "integer": "IADD IADD3 IMAD LEA MOV IABS S2R S2UR R2UR CS2R VIADD LEPC R2B VABSDIFF ISCADD",
}
_CLASS = {mnemonic: name for name, mnemonics in CLASSES.items() for mnemonic in mnemonics.split()}
_LINE = re.compile(
    r"^\s*(?:(?P<label>\.L_\w+):|/\*[0-9a-f]+\*/\s+(?:(?P<guard>@!?U?P\w+)\s+)?(?P<name>[A-Z][\w.]*)(?P<rest>[^;]*);)"
)
_LEAVES = ("BRA", "EXIT", "RET", "BRX")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
# Multiply-adds of one instruction, per warp: a warpgroup's instruction is shared by four warps.
_WARP_MMA = re.compile(r"^[QHI]MMA\.(?:SP\.)?(16)(8)(8|16|32|64)\b")
_GROUP_MMA = re.compile(r"^[QHI]GMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)\b")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: its full name, whether it may be skipped, and the label that it jumps to."""

    name: str
    conditional: bool
    target: str | None


@dataclass
class Block:
    """A run of instructions that is entered at its first and left at its last."""

    instructions: list[Instruction]
    successors: list[int]


def parse(listing: str) -> list[Instruction | str]:
    """Return the instructions and labels (as text) of an ``nvdisasm -c`` listing, in order."""
    items: list[Instruction | str] = []
    for line in listing.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        if match["label"]:
            items.append(match["label"])
        else:
            target = _TARGET.search(match["rest"])
            # A condition stands in front ("@P0 BRA") or among the operands ("BRA.U UP0, ...").
            operand = re.search(r"\bU?P\d\b", match["rest"]) is not None
            items.append(Instruction(match["name"], match["guard"] is not None or operand, target and target[1]))
    return items


def blocks(items: list[Instruction | str]) -> list[Block]:
    """Return the basic blocks of a kernel with their successors; block 0 is the entry."""
    result = [Block([], [])]
    starts: dict[str, int] = {}
    for item in items:
        if isinstance(item, str):
            if result[-1].instructions:
                result.append(Block([], []))
            starts[item] = len(result) - 1
            continue
        result[-1].instructions.append(item)
        if item.name.split(".")[0] in _LEAVES:
            result.append(Block([], []))
    for number, block in enumerate(result):
        last = block.instructions[-1] if block.instructions else None
        kind = last.name.split(".")[0] if last else ""
        # A jump for threads of a warp that have lost each other, which no kernel here lets happen.
        never = last is not None and last.name.startswith("BRA.DIV")
        if number + 1 < len(result) and (kind not in _LEAVES or last.conditional or never):
            block.successors.append(number + 1)
        if last is not None and last.target in starts and not never:
            block.successors.append(starts[last.target])
    return result


def loops(graph: list[Block]) -> list[set[int]]:
    """Return the natural loops as sets of block numbers, one per head."""
    order = _reverse_postorder(graph)
    position = {block: place for place, block in enumerate(order)}
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for successor in graph[block].successors:
            before[successor].append(block)
    dominators: dict[int, set[int]] = {order[0]: {order[0]}}
    everything = set(order)
    for block in order[1:]:
        dominators[block] = everything
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(dominators[p] for p in before[block])) | {block}
            if new != dominators[block]:
                dominators[block], changed = new, True
    found: dict[int, set[int]] = {}
    for block in sorted(order, key=position.get):
        for head in graph[block].successors:
            if head not in dominators[block]:
                continue
            body = found.setdefault(head, {head})
            pending = [block]
            while pending:
                current = pending.pop()
                if current not in body:
                    body.add(current)
                    pending.extend(before[current])
    return list(found.values())


def _reverse_postorder(graph: list[Block]) -> list[int]:
    seen, result, stack = {0}, [], [(0, iter(graph[0].successors))]
    while stack:
        block, successors = stack[-1]
        for successor in successors:
            if successor not in seen:
                seen.add(successor)
                stack.append((successor, iter(graph[successor].successors)))
                break
        else:
            result.append(block)
            stack.pop()
    return result[::-1]


def hot_loops(graph: list[Block]) -> list[list[Instruction]]:
    """Return the instructions of every innermost loop that multiplies matrices, the one with most products first.

    A loop inside that multiplies nothing is a wait that is left at once when all goes well; it is not counted.
    """
    found = loops(graph)

    def multiplies(body: set[int]) -> bool:
        return any(classify(i.name) == "mma" for b in body for i in graph[b].instructions)

    hot = [body for body in found if multiplies(body)]
    innermost = [body for body in hot if not any(other < body for other in hot)]
    waits = [body for body in found if not multiplies(body)]
    result = []
    for body in innermost:
        counted = body - set().union(*(w for w in waits if w < body))
        result.append([i for b in sorted(counted) for i in graph[b].instructions])
    return sorted(result, key=lambda code: -max(products(code), sum(classify(i.name) == "mma" for i in code)))


def classify(name: str) -> str:
    """Return the class of an instruction by its full name; "other" for one that no class lists."""
    if name.startswith("MUFU.EX2"):
        return "ex2"
    base = name.split(".")[0]
    if base.endswith("MMA"):
        return "mma"
    return _CLASS.get(base) or _CLASS.get(base.removeprefix("U"), "other")


def products(code: list[Instruction]) -> int:
    """Return the multiply-adds of ``code`` per warp; 0 where the instructions do not say (sm_100)."""
    total = 0
    for instruction in code:
        if match := _WARP_MMA.match(instruction.name):
            total += int(match[1]) * int(match[2]) * int(match[3])
        elif match := _GROUP_MMA.match(instruction.name):
            total += int(match[1]) * int(match[2]) * int(match[3]) // 4
    return total


def counts(code: list[Instruction]) -> dict[str, int]:
    """Return how often every instruction occurs, by the first part of its name, most frequent first."""
    return dict(Counter(i.name.split(".")[0] for i in code).most_common())


def class_counts(code: list[Instruction]) -> dict[str, int]:
    """Return how often every class occurs."""
    return dict(Counter(classify(i.name) for i in code).most_common())
