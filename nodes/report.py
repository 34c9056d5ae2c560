"""The node *FPSAttention Report*: what ran, after sampling, as text and as a picture."""

from __future__ import annotations

from typing import Any

from ..kernels.presets import preset
from ._api import CATEGORY, io, show_text, ui
from .model_input import diffusion_model_of
from .msfp_facts import msfp_facts
from .report_image import report_image
from .report_text import report_summary, report_text
from .sentence import one_line
from .settings import KEY, Patched, Settings
from .timestep_lora_record import report_lines

_NOT_PATCHED = (
    "This MODEL carries no FPSAttention patch, so every step ran the host's dense attention.\n"
    "Connect the MODEL output of FPSAttention (Wan), or of Load FPSAttention Wan with a file that carries a schedule.\n"
)


class FPSAttentionReport(io.ComfyNode):
    """LATENT passes through; text and IMAGE say what the sampler did."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionReport",
            display_name="FPSAttention Report",
            category=CATEGORY,
            description=(
                "Shows what the attention really did in every step: phase, density, backend, time, and every reason "
                "for staying dense. Put it between the sampler and VAE Decode, so that it runs after sampling."
            ),
            search_aliases=["sparse attention report", "attention density", "why is it dense"],
            is_output_node=True,
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="From the sampler. It passes through unchanged and makes this node run after sampling.",
                ),
                io.Model.Input(
                    "model",
                    tooltip="The patched MODEL that the sampler used, taken before or after other model nodes.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent_out", display_name="LATENT", tooltip="The latent, unchanged."),
                io.String.Output("text", display_name="text", tooltip="The report as text."),
                io.Image.Output(
                    "image",
                    display_name="IMAGE",
                    tooltip="One bar per step: its density, hatched when dense; below, the time of each block.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, latent: dict, model: Any) -> io.NodeOutput:
        """Return latent, text and image; shows text and image on the node."""
        diffusion_model_of(model)
        patched = model.get_attachment(KEY)
        hidden = cls.hidden
        sources = upstream(hidden.prompt, hidden.unique_id, "latent") if hidden is not None else None
        if isinstance(patched, Patched):
            settings = patched.settings
            runs = patched.recorder.select(sources)
            names = node_names(hidden.prompt) if hidden is not None else {}
            text = report_text(settings, runs, names)
            summary = report_summary(settings, runs, names)
            image = report_image(settings, runs, names)
        else:
            text = summary = _NOT_PATCHED
            image = report_image(Settings(preset("dense"), "nowhere: the model is not patched"), [], {})
        quantized, loras = msfp_facts(model), "".join(f"{line}\n" for line in report_lines(model, sources))
        weights = f"{quantized.line}\n" if quantized is not None else ""
        text, summary = weights + text + loras, f"{weights}{summary}\n{loras}".strip()
        show_text(hidden.unique_id if hidden is not None else None, summary)
        shown = ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(latent, text, image, ui=shown)


def upstream(prompt: dict | None, node_id: str | None, slot: str) -> set[str] | None:
    """Return the ids of all nodes that the input ``slot`` of ``node_id`` depends on; None where that cannot be told.

    ``prompt`` is in API format: an input that is linked is a list of node id and output number.
    """
    if not prompt or str(node_id) not in prompt:
        return None
    link = prompt[str(node_id)].get("inputs", {}).get(slot)
    pending = [str(link[0])] if isinstance(link, list) and link else []
    found: set[str] = set()
    while pending:
        current = pending.pop()
        if current in found or current not in prompt:
            continue
        found.add(current)
        for value in prompt[current].get("inputs", {}).values():
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
                pending.append(value[0])
    return found or None


def node_names(prompt: dict | None) -> dict[str, str]:
    """Return the name of every node of the prompt: its title if the graph has one, else its class."""
    return {
        # Programs that queue prompts may write null where the page writes a title.
        key: one_line((node.get("_meta") or {}).get("title") or node.get("class_type", ""))
        for key, node in (prompt or {}).items()
    }
