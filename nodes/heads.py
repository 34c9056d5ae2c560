"""The node *Load Head Patterns*: a head table from a file, checked, told in words and shown as a picture."""

from __future__ import annotations

import logging
import os
import textwrap
from typing import Any

import torch

from ..kernels.head_table import HeadTable, HeadTableError, read_head_table
from ._api import CATEGORY, FpsHeads, FpsSchedule, io, show_text, ui
from .drawing import INK, MARGIN, SOFT, WIDTH, font, image_tensor, page
from .head_map import draw_map, map_height
from .head_use import HeadUse, pattern_lines, table_use
from .sentence import one_line, written

logger = logging.getLogger(__name__)

# A model folder of the host's; the search saves below the output folder, under the same name.
FOLDER = "fpsattention"
ENDING = ".json"
_MOST_FACTS = 40
_LINE, _LETTERS = 18, 145


class FPSAttentionLoadHeads(io.ComfyNode):
    """File in; head table, its schedule, text and picture out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionLoadHeads",
            display_name="Load Head Patterns",
            category=CATEGORY,
            description=(
                "Loads a head table: which part of the video each attention head of each layer looks at, as a search "
                "found it for one model (Sparse-vDiT). Connect it to FPSAttention (Wan). The file is checked when the "
                "workflow is queued."
            ),
            search_aliases=["head table", "sparse-vdit", "head patterns", "load attention patterns"],
            inputs=[
                io.Combo.Input(
                    "file_name",
                    options=table_names(),
                    tooltip=(
                        "A head table (.json) in models/fpsattention, or in the folder fpsattention of ComfyUI's "
                        "output folder, where a search saves its tables."
                    ),
                ),
            ],
            outputs=[
                FpsHeads.Output("heads", display_name="heads", tooltip="The head table, for FPSAttention (Wan)."),
                FpsSchedule.Output(
                    "schedule",
                    display_name="schedule",
                    tooltip="The schedule that the table was searched with; it says heads where the table is used.",
                ),
                io.String.Output(
                    "text", display_name="text", tooltip="What the table says: model, size, patterns, how it was found."
                ),
                io.Image.Output(
                    "image", display_name="IMAGE", tooltip="The density of every head in every layer, dark where dense."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file_name: Any = None) -> bool | str:
        """Return True, or the sentence that says why the file cannot be used."""
        if file_name is None:
            return True
        try:
            load_table(file_name)
        except HeadTableError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file_name: Any = None) -> str:
        """Return what changes when the file does: a search may write it again under the same name."""
        try:
            stat = os.stat(table_path(file_name))
        except (HeadTableError, OSError):
            return "no file"
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, file_name: str) -> io.NodeOutput:
        """Return table, schedule, text and picture; raises HeadTableError with one sentence."""
        table = load_table(file_name)
        use = table_use(table)
        text, image = table_text(file_name, table, use), table_image(file_name, table, use)
        show_text(cls.hidden.unique_id if cls.hidden is not None else None, "\n".join(facts(table, use)))
        shown = ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(table, table.schedule, text, image, ui=shown)


def register_folder() -> None:
    """Tell the host where head tables lie: a model folder, which its own settings may add to, and where a search
    saves."""
    import folder_paths

    for path in (os.path.join(folder_paths.models_dir, FOLDER), save_folder()):
        folder_paths.add_model_folder_path(FOLDER, path)
    endings = folder_paths.folder_names_and_paths[FOLDER][1]
    if isinstance(endings, set):
        endings.add(ENDING)


def save_folder() -> str:
    """Return the folder that tables are saved to; the host lists it beside the model folder."""
    import folder_paths

    return os.path.join(folder_paths.get_output_directory(), FOLDER)


def table_names() -> list[str]:
    """Return the head tables that the host knows, by name."""
    import folder_paths

    register_folder()
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.lower().endswith(ENDING)]


def table_path(file_name: Any) -> str:
    """Return where the table of that name lies; raises HeadTableError with one sentence."""
    import folder_paths

    if not isinstance(file_name, str) or not file_name:
        raise HeadTableError(f"file_name is {written(file_name)}, which is no file's name; choose a file in the node.")
    register_folder()
    path = folder_paths.get_full_path(FOLDER, file_name) if file_name.lower().endswith(ENDING) else None
    if path is None:
        sentence = (
            f"{file_name} is neither in models/{FOLDER} nor in {FOLDER} of the output folder; choose another file, or "
            "refresh the list."
        )
        raise HeadTableError(one_line(sentence))
    return path


def load_table(file_name: Any) -> HeadTable:
    """Return the head table of that name; raises HeadTableError with one printable sentence that names it."""
    path = table_path(file_name)
    try:
        return read_head_table(path)
    except HeadTableError as error:
        raise HeadTableError(one_line(error)) from None


def facts(table: HeadTable, use: HeadUse) -> list[str]:
    """Return what the table is for, one line each."""
    grid, tile = ("x".join(map(str, shape)) for shape in (table.grid.shape, table.tile))
    separate = "one for each branch of guidance" if table.branches > 1 else "the same for both branches of guidance"
    ends = ", ".join(f"{band.until:g}" for band in table.bands)
    bands = f"{len(table.bands)} bands of sigma (down to {ends})" if len(table.bands) > 1 else "all of sigma"
    return [
        f"searched on {one_line(table.model) or 'a model without a name'}: {table.layers} layers of {table.heads} "
        f"heads, {separate}",
        f"grid {grid} = {table.grid.tokens:,} tokens in tiles of {tile}; {one_line(bands)}",
        f"mean density {use.density.mean():.1%} of the heads in the mean over its bands",
    ]


def table_text(file_name: str, table: HeadTable, use: HeadUse) -> str:
    """Return everything that the table says."""
    lines = [f"Head patterns: {one_line(file_name)}", *facts(table, use), "", "Patterns", *pattern_lines(use), ""]
    lines += [table.schedule.format().rstrip(), ""]
    if table.made:
        lines += ["How it was found"]
        lines += [f"{one_line(key)}: {_fact(value)}" for key, value in list(table.made.items())[:_MOST_FACTS]]
    return "\n".join(lines).rstrip() + "\n"


def _fact(value: Any) -> str:
    return one_line(value) if isinstance(value, str) else written(value)


def table_image(file_name: str, table: HeadTable, use: HeadUse) -> torch.Tensor:
    """Return the picture of ``table`` as an IMAGE tensor ``(1, height, width, 3)`` in 0..1."""
    said = [facts(table, use)[0], *pattern_lines(use)]
    below = [part for line in said for part in textwrap.wrap(line, _LETTERS)]
    height = 96 + map_height(table.heads) + _LINE * (len(below) + 1)
    picture, draw = page(
        height, "FPSAttention: density per head", f"{one_line(file_name)}: {facts(table, use)[1]}"[:150]
    )
    caption = f"density of each head, 0 to 100 %: mean over {len(table.bands)} band{'s' * (len(table.bands) != 1)}"
    draw_map(draw, use.density.T, ("head", "layer"), caption, MARGIN, WIDTH - 24, 84)
    top = 84 + map_height(table.heads)
    for number, line in enumerate(below):
        draw.text((MARGIN, top + number * _LINE), line, font=font(13), fill=INK if number else SOFT)
    return image_tensor(picture)
