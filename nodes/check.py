"""The node *FPSAttention Check*: what this installation can do, and what to do where it cannot."""

from __future__ import annotations

import time
from typing import Any

from ._api import CATEGORY, io, ui
from .check_environment import Report, environment, scrub
from .check_model import describe_model


class FPSAttentionCheck(io.ComfyNode):
    """Text for people, to read and to copy into a question."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionCheck",
            display_name="FPSAttention Check",
            category=CATEGORY,
            description=(
                "Says what this installation can do: versions, GPU, every attention backend with the reason why it "
                "cannot run, measured times, what is on the model, and what to do next. Copy the text when you ask for "
                "help; the only path in it is that of the kept times."
            ),
            search_aliases=["diagnose", "environment", "why no speedup", "triton missing", "installation check"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "A model to look at, best where it enters the sampler: its shape, the schedule in its file, "
                        "whether FPSAttention patches it, and what other nodes have hooked into it."
                    ),
                ),
            ],
            outputs=[
                io.String.Output("text", display_name="text", tooltip="The whole report, ready to copy."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> float:
        """Return the time: drivers, packages and measurements change without the inputs."""
        del inputs
        return time.time()

    @classmethod
    def execute(cls, model: Any = None) -> io.NodeOutput:
        """Return the report; raises nothing."""
        text = check(model)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def check(model: Any = None) -> str:
    """Return the report, with what to do at its end; raises nothing."""
    report = Report()
    environment(report)
    if model is not None:
        describe_model(report, model)
    steps = [f"{number}. {scrub(step)}" for number, step in enumerate(report.steps, 1)]
    steps = steps or ["Nothing: everything that this pack uses is in place."]
    return "\n".join(["FPSAttention Check", *report.lines, "", "What to do", *steps]) + "\n"
