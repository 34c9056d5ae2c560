"""The node *Load MSFP Wan*: a Wan model whose linear layers are packed in 4 bits, loaded as it is packed."""

from __future__ import annotations

import os
from typing import Any

from ..kernels.checkpoint import HeaderError
from ..kernels.msfp.file import MsfpFile, is_msfp, read_msfp
from ._api import CATEGORY, FpsSchedule, io, show_text, ui
from .load import FOLDER, file_path, inspect_file, naming, patched_by, read_metadata
from .msfp_facts import ACTIVATIONS, AS_TRAINED, KEY, describe_msfp, facts_of
from .sentence import one_line, written


class FPSAttentionLoadMsfp(io.ComfyNode):
    """MSFP file in; MODEL, its schedule and text out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        import folder_paths

        return io.Schema(
            node_id="FPSAttentionLoadMsfp",
            display_name="Load MSFP Wan",
            category=CATEGORY,
            description=(
                "Loads a Wan diffusion model whose linear layers are in 4 bits (MSFP, written by this pack's trainer). "
                "They stay packed in memory and are unpacked one by one as they are used, so a model of 14B takes "
                "about 8 GB. LoRAs and other model nodes work on it; a schedule in the file is applied as in Load "
                "FPSAttention Wan."
            ),
            search_aliases=["4-bit wan", "quantized wan", "msfp", "fp4", "low vram wan", "unet loader"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip=(
                        "An MSFP file (.safetensors) in models/diffusion_models. Its header is checked before it is "
                        "loaded; ordinary Wan files belong to the other loaders."
                    ),
                ),
                io.Combo.Input(
                    "activations",
                    options=list(ACTIVATIONS),
                    default=AS_TRAINED,
                    tooltip=(
                        "as trained: the inputs of the packed layers are rounded as the file says, which is what the "
                        "model was tuned with. full precision: only the weights are in 4 bits; slightly other results, "
                        "and for a model that was not tuned mostly better ones."
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
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="What the file is: layers, formats, bits per weight, inputs, and its schedule.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model_name: Any = None) -> bool | str:
        """Return True, or the sentence that says why the file cannot be used; reads its header only."""
        if model_name is None:
            return True
        try:
            inspect_msfp(model_name)
        except HeaderError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model_name: Any = None, activations: Any = None) -> str:
        """Return what changes when the file does: a model may be quantized again under the same name."""
        try:
            stat = os.stat(file_path(model_name))
        except (HeaderError, OSError):
            return "no file"
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, model_name: str, activations: str) -> io.NodeOutput:
        """Return model, schedule and text; raises HeaderError or ValueError, for all but damaged scales before any
        weight is read."""
        file = inspect_msfp(model_name)
        if activations not in ACTIVATIONS:
            raise ValueError(
                f"activations is {written(activations)}, which is none of its choices; choose one of "
                f"{', '.join(ACTIVATIONS)}."
            )
        facts = facts_of(model_name, file, activations)
        model = _load(model_name, file, activations == AS_TRAINED)
        model.set_attachments(KEY, facts)
        model, schedule, said = patched_by(model, model_name, file.header)
        text = describe_msfp(facts, file) + said
        show_text(cls.hidden.unique_id if cls.hidden is not None else None, text)
        return io.NodeOutput(model, schedule, text, ui=ui.PreviewText(text))


def inspect_msfp(model_name: Any) -> MsfpFile:
    """Return what the header of a file in models/diffusion_models says. Raises HeaderError with one sentence, for
    everything that is no MSFP file of a Wan model; for an ordinary Wan file it names the right loader."""
    path = file_path(model_name)
    try:
        if not is_msfp(read_metadata(path)[0]):
            inspect_file(model_name)
            raise HeaderError(
                f"{model_name} is an ordinary Wan file, not an MSFP one; load it with Load FPSAttention Wan or Load "
                "Diffusion Model."
            )
        return read_msfp(path)
    except HeaderError as error:
        raise HeaderError(naming(model_name, str(error))) from None


def _load(model_name: str, file: MsfpFile, round_inputs: bool) -> Any:
    from safetensors import SafetensorError

    try:
        from .msfp_model import load_msfp_model
    except ImportError as error:
        raise ValueError(
            one_line(f"this ComfyUI cannot hold quantized weights ({error}); update ComfyUI and its requirements.")
        ) from None
    try:
        return load_msfp_model(str(file.path), round_inputs)
    except HeaderError as error:
        raise HeaderError(naming(model_name, str(error))) from None
    except (SafetensorError, FileNotFoundError) as error:
        # What its header alone does not show, or gone since: a name that is not UTF-8, offsets that do not fit.
        raise HeaderError(
            one_line(f"{model_name} cannot be loaded ({error}); copy it again, or give it a plain name.")
        ) from None
