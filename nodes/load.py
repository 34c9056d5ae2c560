"""The node *Load FPSAttention Wan*: a diffusion model file, patched by the schedule that it carries."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ..kernels.checkpoint import Header, HeaderError, read_metadata
from ..kernels.msfp.file import is_msfp
from ..kernels.presets import preset
from ..kernels.schedule import Schedule
from ._api import CATEGORY, FpsSchedule, io, show_text, ui
from .patch import apply_patch
from .sentence import one_line, written
from .settings import choose_settings

logger = logging.getLogger(__name__)

FOLDER = "diffusion_models"

WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}

# What every Wan diffusion model has, with or without a prefix.
_WAN_TENSORS = ("head.modulation", "blocks.0.self_attn.q.weight")


class FPSAttentionLoadWan(io.ComfyNode):
    """File in, patched MODEL and its schedule out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        import folder_paths

        return io.Schema(
            node_id="FPSAttentionLoadWan",
            display_name="Load FPSAttention Wan",
            category=CATEGORY,
            description=(
                "Loads a Wan diffusion model and patches it with the FPSAttention schedule in its file, so that it "
                "samples as it was trained. An ordinary Wan file loads too, stays dense, and is said to carry no "
                "schedule: add FPSAttention (Wan) to make it sparse."
            ),
            search_aliases=["load wan", "fpsattention checkpoint", "unet loader"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A safetensors file in models/diffusion_models. Its header is checked before it is loaded.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip=(
                        "As in Load Diffusion Model: default keeps the file's precision, fp8 halves the memory of the "
                        "weights at some loss, fast also multiplies in FP8 where the GPU can. It does not change the "
                        "attention."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL", tooltip="The model, patched if the file carries a schedule."
                ),
                FpsSchedule.Output(
                    "schedule",
                    display_name="schedule",
                    tooltip="What the MODEL runs: the file's schedule, or a dense one where it carries none.",
                ),
                io.String.Output("text", display_name="text", tooltip="The schedule as text, and what the file says."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model_name: Any = None) -> bool | str:
        """Return True, or the sentence that says why the file cannot be used; reads its header only."""
        if model_name is None:
            return True
        try:
            inspect_file(model_name)
        except HeaderError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        """Return model, schedule and text; raises HeaderError or ValueError before any weight is read."""
        import comfy.sd
        from safetensors import SafetensorError

        path, header = inspect_file(model_name)
        options = weight_options(weight_dtype)
        try:
            model = comfy.sd.load_diffusion_model(path, model_options=options)
        except (SafetensorError, FileNotFoundError) as error:
            # What its header alone does not show, or gone since: a name that is not UTF-8, offsets that do not fit.
            raise HeaderError(
                one_line(f"{model_name} cannot be loaded ({error}); download it again, or give it a plain name.")
            ) from None
        model, schedule, text = patched_by(model, model_name, header)
        show_text(cls.hidden.unique_id if cls.hidden is not None else None, text)
        return io.NodeOutput(model, schedule, text, ui=ui.PreviewText(text))


def patched_by(model: Any, model_name: str, header: Header | None) -> tuple[Any, Schedule, str]:
    """Return model, schedule and text for a file with ``header``: patched by it, or dense without one."""
    if header is not None:
        return apply_patch(model, choose_settings(header, None, "auto")), header.schedule, describe(model_name, header)
    schedule = preset("dense")
    logger.info("%s carries no FPSAttention schedule: attention stays dense.", one_line(model_name))
    said = f"# {one_line(model_name)} carries no FPSAttention schedule, so attention stays dense.\n"
    return model, schedule, said + schedule.format()


def weight_options(weight_dtype: Any) -> dict[str, Any]:
    """Return what the host's loader takes for ``weight_dtype``; raises ValueError with one sentence.

    The host looks at linked values no more.
    """
    if not isinstance(weight_dtype, str) or weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(
            f"weight_dtype is {written(weight_dtype)}, which is none of its choices; "
            f"choose one of {', '.join(WEIGHT_DTYPES)}."
        )
    return dict(WEIGHT_DTYPES[weight_dtype])


def file_path(model_name: Any) -> str:
    """Return where the file of that name lies in models/diffusion_models; raises HeaderError with one sentence."""
    import folder_paths

    if not isinstance(model_name, str) or not model_name:
        raise HeaderError(f"model_name is {written(model_name)}, which is no file's name; choose a file in the node.")
    path = folder_paths.get_full_path(FOLDER, model_name)
    if path is None:
        sentence = f"{model_name} is not in models/{FOLDER}; choose another file, or refresh the list."
        raise HeaderError(one_line(sentence))
    return path


def inspect_file(model_name: Any) -> tuple[str, Header | None]:
    """Return path and FPSAttention header (None if it carries none) of a file that is a Wan diffusion model.

    Raises HeaderError with one sentence if it has no name, is missing, not safetensors, truncated, not Wan, or its
    header is damaged or newer.
    """
    path = file_path(model_name)
    try:
        metadata, tensors = read_metadata(path)
        if is_msfp(metadata):
            raise HeaderError(f"{model_name} is an MSFP model, whose weights are packed; load it with Load MSFP Wan.")
        if not all(any(name.endswith(wanted) for name in tensors) for wanted in _WAN_TENSORS):
            raise HeaderError(f"{model_name} is not a Wan diffusion model; load it with the loader of its own kind.")
        return path, Header.from_metadata(metadata)
    except HeaderError as error:
        raise HeaderError(naming(model_name, str(error))) from None


def describe(model_name: str, header: Header) -> str:
    """Return the schedule text of ``header`` under a line that says where it came from."""
    tile = "x".join(map(str, header.tile)) if header.tile else "chosen per size"
    lines = [f"# {one_line(model_name)}: trained with this schedule, {header.slots} slots per tile, tile {tile}"]
    if header.step:
        lines[0] += f", {header.step} steps"
    if header.heads is not None:
        table = header.heads
        lines.append(f"# with a head table for {table.layers} layers of {table.heads} heads")
    return "\n".join(lines) + "\n" + header.schedule.format()


def naming(model_name: str, sentence: str) -> str:
    """Return ``sentence`` on one line, with the file's name in it."""
    return one_line(sentence if model_name in sentence else f"{model_name}: {sentence}")
