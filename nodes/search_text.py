"""What a search says: where its table was saved, what it found, and what other budgets would have found."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..kernels.head_table import HeadTable, HeadTableError, write_head_table
from .drawing import COLORS, MARGIN, WIDTH, image_tensor, page
from .head_use import HeadUse
from .heads import ENDING, FOLDER, register_folder, save_folder, table_image, table_text
from .profile_meter import spoken
from .profile_plots import Axis, curves
from .sentence import one_line

if TYPE_CHECKING:
    from .search_run import Found

logger = logging.getLogger(__name__)

_PLOT = 340
# Below this a mean error is none.
_NOTHING = 1e-7


def model_name(model: Any) -> str:
    """Return the name of the file that ``model`` was loaded from, or of its class where the host does not say it."""
    try:
        path = model.cached_patcher_init[1][0]
    except (AttributeError, IndexError, KeyError, TypeError):
        path = None
    return os.path.basename(path) if isinstance(path, str | os.PathLike) else type(model.model).__name__


def save_table(table: HeadTable, name: str) -> Path:
    """Save ``table`` below the output folder under ``name`` and the host's counter, and return the path; raises
    HeadTableError."""
    import folder_paths

    folder, base, counter, _, _ = folder_paths.get_save_image_path(
        f"{FOLDER}/{name}", folder_paths.get_output_directory()
    )
    register_folder()
    # Another process may have taken the number since; a table of that name elsewhere would be loaded in its place.
    while (path := Path(folder) / f"{base}_{counter:05}_{ENDING}").exists() or folder_paths.get_full_path(
        FOLDER, os.path.relpath(path, save_folder())
    ):
        counter += 1
    return write_head_table(path, table)


def saved(found: Found, name: str) -> str:
    """Save the table of ``found`` and return the path as a person reads it; where that fails, a note says so and the
    table is not lost."""
    try:
        path = save_table(found.table, name)
    except (HeadTableError, OSError) as error:
        found.notes.append(f"the table was not saved: {one_line(error)}")
        logger.warning("Search Head Patterns: %s", found.notes[-1])
        return ""
    return os.path.relpath(path, save_folder())


def search_text(found: Found, file_name: str, use: HeadUse) -> str:
    """Return everything that was found."""
    made, effort = found.table.made, found.effort
    where = f"saved as {one_line(file_name)} in {FOLDER} of the output folder" if file_name else "not saved"
    rule = f"lambda {made['lambda']:.4g}, epsilon {made['epsilon']:.4g}"
    lines = [
        f"Search Head Patterns: {where}",
        f"what was searched: mean cost {found.cost:.1%} of full attention, mean density {found.density:.1%}",
        f"mean error {made['mean_error']:.4g} ({made['error']}), {rule}",
        f"it took {spoken(found.seconds)}, by its operations {effort.dense_runs:.1f} dense runs were expected",
        *found.notes,
        "",
    ]
    return "\n".join(lines) + table_text(file_name or "not saved", found.table, use)


def search_image(found: Found, file_name: str, use: HeadUse) -> torch.Tensor:
    """Return the picture as an IMAGE tensor ``(1, height, width, 3)`` in 0..1: the density of every head, and the
    errors of other budgets."""
    table, made = found.table, found.table.made
    picture, draw = page(
        _PLOT,
        "What other budgets would lose",
        "the same measured errors, chosen anew per lambda; cross: this table",
    )
    # Where every head is full nothing is lost, which has no place on a logarithmic axis.
    points = [(x, y) for x, y in zip(*next(iter(found.curves.values()))) if y > _NOTHING]
    xs, ys = zip(*points) if points else ([found.density], [math.nan])
    mark = (found.density, made["mean_error"])
    axis = Axis([*xs, mark[0]])
    title = f"mean error ({made['error']}) over mean density"
    curves(
        draw, (MARGIN + 40, 124, WIDTH - 64, _PLOT - 48), title, axis, xs, [("", COLORS[0], ys)],
        marks=[mark] if mark[1] > _NOTHING else [],
        unit="plain",
    )  # fmt: skip
    return torch.cat([table_image(file_name or "not saved", table, use), image_tensor(picture)], 1)
