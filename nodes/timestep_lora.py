"""The node *Timestep-aware LoRA*: several LoRAs per layer, of which the one of the current noise level acts."""

from __future__ import annotations

import logging
import os
from typing import Any

from ..kernels.checkpoint import HeaderError
from ..kernels.timestep_lora import TimestepLora, read_timestep_lora
from ._api import CATEGORY, io, show_text, ui
from .model_input import diffusion_model_of
from .msfp_facts import msfp_facts
from .patch import PatchError, compute_dtype
from .sentence import one_line, written
from .timestep_lora_patch import Entry, apply_timestep_lora, linear_layers

logger = logging.getLogger(__name__)

FOLDER = "loras"
ENDINGS = (".safetensors", ".sft")
MOST_STRENGTH = 100.0
_MOST_LINES = 60


class FPSAttentionTimestepLora(io.ComfyNode):
    """MODEL in, MODEL out, on which the LoRA of the current sigma acts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionTimestepLora",
            display_name="Timestep-aware LoRA",
            category=CATEGORY,
            description=(
                "Loads a timestep-aware LoRA (TALoRA): a file with several LoRAs per layer and a table that says which "
                "of them acts at which noise level. While sampling, the LoRA of the current sigma is added beside each "
                "layer; the weights stay as they are, so this works on bf16, fp8, GGUF and 4-bit models and switching "
                "costs nothing. It works on any Wan, with any sampler, and with the other FPSAttention nodes."
            ),
            search_aliases=["talora", "lora by sigma", "timestep lora", "lora hub", "load lora"],
            inputs=[
                io.Model.Input("model", tooltip="The Wan model that the LoRA was trained for, quantized or not."),
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip=(
                        "A timestep-aware LoRA (.safetensors) in models/loras. Its header is checked when the workflow "
                        "is queued; an ordinary LoRA belongs to the stock LoRA loader."
                    ),
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-MOST_STRENGTH,
                    max=MOST_STRENGTH,
                    step=0.01,
                    tooltip="How strongly every LoRA of the file acts: 1 as it was trained, 0 not at all.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "adapted",
                    display_name="MODEL",
                    tooltip="The model with the LoRAs beside its layers. Further LoRA nodes add to them.",
                ),
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="Which LoRA acts at which sigma, their number, rank and layers, and what the file is for.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, lora_name: Any = None) -> bool | str:
        """Return True, or the sentence that says why the file cannot be used; reads its header only."""
        if lora_name is None:
            return True
        try:
            inspect_lora(lora_name)
        except HeaderError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: Any = None, lora_name: Any = None, strength: Any = None) -> str:
        """Return what changes when the file does: a training may export it again under the same name."""
        try:
            stat = os.stat(lora_path(lora_name))
        except (HeaderError, OSError):
            return "no file"
        return f"{stat.st_mtime_ns} {stat.st_size}"

    @classmethod
    def execute(cls, model: Any, lora_name: str, strength: float) -> io.NodeOutput:
        """Return the adapted clone and the text; raises HeaderError, PatchError or ValueError with one sentence, before
        anything is sampled."""
        diffusion_model = diffusion_model_of(model)
        factor = lora_strength(strength)
        file = inspect_lora(lora_name)
        problem = file.misfit(linear_layers(diffusion_model))
        if problem is not None:
            raise PatchError(one_line(problem))
        quantized = msfp_facts(model)
        note = base_note(file, None if quantized is None else quantized.fingerprint)
        adapted = _adapted(model, file, one_line(lora_name), factor, note)
        text = describe(lora_name, file, factor, note)
        show_text(cls.hidden.unique_id if cls.hidden is not None else None, text)
        return io.NodeOutput(adapted, text, ui=ui.PreviewText(text))


def _adapted(model: Any, file: TimestepLora, name: str, strength: float, note: str | None) -> Any:
    from .timestep_lora_hub import load_hub, managed

    try:
        hub = load_hub(file, strength, compute_dtype(model))
    except HeaderError as error:
        raise HeaderError(one_line(error)) from None
    # A strength of 0 is no LoRA at all, but a file that cannot be used is refused all the same.
    if strength == 0:
        return model
    return apply_timestep_lora(model, Entry(file, hub, name), managed(hub, model), [note] if note else [])


def lora_names() -> list[str]:
    """Return the files in models/loras that can hold a timestep-aware LoRA."""
    import folder_paths

    return [name for name in folder_paths.get_filename_list(FOLDER) if name.lower().endswith(ENDINGS)]


def lora_path(lora_name: Any) -> str:
    """Return where the file of that name lies; raises HeaderError with one sentence."""
    import folder_paths

    if not isinstance(lora_name, str) or not lora_name:
        raise HeaderError(f"lora_name is {written(lora_name)}, which is no file's name; choose a file in the node.")
    path = folder_paths.get_full_path(FOLDER, lora_name)
    if path is None:
        raise HeaderError(one_line(f"{lora_name} is not in models/{FOLDER}; choose another file, or refresh the list."))
    return path


def inspect_lora(lora_name: Any) -> TimestepLora:
    """Return what the header of a file in models/loras says; raises HeaderError with one printable sentence."""
    path = lora_path(lora_name)
    try:
        return read_timestep_lora(path)
    except HeaderError as error:
        raise HeaderError(one_line(error)) from None


def lora_strength(value: Any) -> float:
    """Return ``value`` as a strength; raises ValueError with one sentence. The host looks at linked values no more."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_STRENGTH:
        raise ValueError(
            f"strength is {written(value)}; it must be a number of {-MOST_STRENGTH:g} to {MOST_STRENGTH:g}, such as 1."
        )
    return float(value)


def base_note(file: TimestepLora, have: str | None) -> str | None:
    """Return what to say if ``file`` was trained on another base than this model, None if nothing speaks against it;
    ``have`` is the fingerprint of a model from an MSFP file, None for any other."""
    name, base = one_line(file.path.name), one_line(file.base)[:16]
    if file.base and have is not None and file.base != have:
        return (
            f"{name} was trained on another quantization ({base}) than this model's ({have[:16]}): it acts, "
            "but corrects rounding errors that this model does not make."
        )
    if file.base and have is None:
        return (
            f"{name} was trained on a quantized model ({base}) and this model is not one: it acts, but corrects "
            "rounding errors that this model does not make."
        )
    if have is not None and not file.base:
        return f"{name} was trained on a model in full precision, and this one is quantized."
    return None


def describe(lora_name: str, file: TimestepLora, strength: float, note: str | None) -> str:
    """Return the table of ``file`` under lines that say what it is and what it is for."""
    lines = [
        f"# {one_line(lora_name)}: {file.hub} LoRA{'s' * (file.hub != 1)} of rank {file.rank} for each of "
        f"{len(file.layers)} layers, strength {strength:g}"
    ]
    if strength == 0:
        lines.append("# strength 0: none of them acts")
    if note:
        lines.append(f"# note: {note}")
    elif file.base:
        lines.append(f"# trained on this quantized model ({one_line(file.base)[:16]})")
    rows = file.table.text.splitlines()
    lines += rows[:_MOST_LINES]
    if len(rows) > _MOST_LINES:
        lines.append(f"... and {len(rows) - _MOST_LINES} more rows")
    if file.header is not None:
        lines += [
            "# trained with this schedule; give it to FPSAttention (Wan):",
            file.header.schedule.format().rstrip(),
        ]
    return "\n".join(lines) + "\n"
