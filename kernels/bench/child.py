"""The child's side: measure one cell in this process and write the answer to a file."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from . import environment
from .cells import Cell
from .store import plain

if TYPE_CHECKING:
    import torch


def answer_cell(text: str, answer: Path, *, standin: bool, peers: str) -> int:
    """Measure the cell that ``text`` describes, write its result to ``answer`` as JSON, return the exit code.

    What was measured before a failure is kept, beside its message.
    """
    cell = Cell.from_json(text)
    latest: dict = {}

    def save(result: dict) -> None:
        latest.update(result)
        temporary = answer.with_suffix(".part")
        temporary.write_text(json.dumps(plain(latest), allow_nan=False), encoding="utf-8")
        os.replace(temporary, answer)

    try:
        save(measure(cell, standin=standin, peers=peers, save=save))
    except Exception as error:
        save({"status": "failed", "message": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        return 1
    return 0


def measure(cell: Cell, *, standin: bool, peers: str, save: Callable[[dict], None]) -> dict:
    """Return the result of the cell, whatever its kind."""
    if cell.kind == "header":
        return environment.header(standin)
    import torch

    if standin:
        from .standin import prepare

        torch.set_num_threads(1)
        unusable = prepare()
        device = torch.device("cpu")
    else:
        unusable = None
        if not torch.cuda.is_available():
            raise RuntimeError("torch finds no CUDA device; --standin takes the same path on a CPU.")
        device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    result = _kind(cell, device, standin, peers, save)
    if device.type == "cuda":
        # Right after the work: a card that idles says nothing about its clocks under load.
        result["card_after"] = environment.state(device)
    if unusable:
        result["standin_note"] = f"the reference stood in for the Triton kernels: {unusable}"
    return result


def _kind(cell: Cell, device: torch.device, standin: bool, peers: str, save: Callable[[dict], None]) -> dict:
    """Return the result of what the cell's kind names; raises ValueError for an unknown one."""
    if cell.kind == "ceilings":
        from . import ceilings

        return ceilings.measure(device)
    if cell.kind in ("attention", "start"):
        from . import attention_cell

        if cell.kind == "start":
            return attention_cell.start_times(cell, device)
        return attention_cell.run(cell, device, peers, save)
    if cell.kind == "checks":
        from . import checks

        return checks.run(cell, device, save)
    if cell.kind == "tune":
        from . import tune

        return tune.run(cell, device, save)
    if cell.kind == "heads":
        from . import heads_cell

        return heads_cell.run(cell, device, save)
    if cell.kind == "msfp":
        from . import msfp_cell

        return msfp_cell.run(cell, device, save)
    if cell.kind == "model":
        from . import model

        return model.run(cell, device, standin, save)
    raise ValueError(f"there is no kind of cell '{cell.kind}'.")
