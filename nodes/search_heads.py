"""The node *Search Head Patterns*: finds a pattern for every head of a model by sampling with it (Sparse-vDiT)."""

from __future__ import annotations

from typing import Any

from ..kernels.headsearch.candidates import named_candidates
from ..kernels.headsearch.rule import EPSILON, LAMBDA
from ._api import CATEGORY, FpsHeads, FpsSchedule, io, show_text, ui
from .dense_blocks import parse_blocks
from .head_use import table_use
from .own_sampling import Job
from .profile_inputs import MAX_SEED
from .search_inputs import (
    BANDS,
    CUSTOM,
    DEFAULT_NAME,
    DEFAULT_SCHEDULE,
    RULES,
    HeadSearchError,
    Wanted,
    custom_candidates,
    problem,
    read_schedule,
    search_inputs,
)
from .search_run import Found, run_search
from .search_text import saved, search_image, search_text
from .video_size import missing_problem


class FPSAttentionSearchHeads(io.ComfyNode):
    """MODEL and what a KSampler takes in; head table, its schedule, text and picture out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's inputs and outputs."""
        return io.Schema(
            node_id="FPSAttentionSearchHeads",
            display_name="Search Head Patterns",
            category=CATEGORY,
            description=(
                "Finds out which part of the video each attention head of each layer needs (the method of Sparse-vDiT) "
                "and saves it as a head table for FPSAttention (Wan). It samples your prompt; in every step it tries "
                "all candidates on every head, chooses one, and goes on with what that gives. As the inputs stand this "
                "takes about as long as 11 videos, with the candidates paper 6, times runs and prompts; on small "
                "videos more. The log says how long. Do it once per model."
            ),
            search_aliases=["sparse-vdit", "head search", "find head patterns", "calibrate heads", "head table"],
            is_output_node=True,
            # A list of prompts is one search.
            is_input_list=True,
            inputs=search_inputs(),
            outputs=[
                FpsHeads.Output(
                    "heads", display_name="heads", tooltip="The head table, for the input heads of FPSAttention (Wan)."
                ),
                FpsSchedule.Output(
                    "schedule_out",
                    display_name="schedule",
                    tooltip="The schedule that was searched; it says heads where the table is used.",
                ),
                io.String.Output(
                    "text", display_name="text", tooltip="What was found, and the file that it was saved to."
                ),
                io.Image.Output(
                    "image",
                    display_name="IMAGE",
                    tooltip="The density of every head, and the error that other budgets would have.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls,
        seed: Any = None,
        steps: Any = None,
        cfg: Any = None,
        runs: Any = None,
        candidates: Any = None,
        rule: Any = None,
        budget: Any = None,
        name: Any = None,
        schedule: Any = None,
        dense_steps: Any = None,
        dense_blocks: Any = None,
        patterns: Any = None,
        stripes: Any = None,
        bands: Any = None,
        branches: Any = None,
        cost: Any = None,
        error: Any = None,
        lambda_cost: Any = None,
        epsilon: Any = None,
    ) -> bool | str:
        """Return True, or the sentence that says what is wrong; linked values are checked when they arrive."""
        given = {key: _first(value) for key, value in locals().items() if key != "cls"}
        return problem(**given) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        seed: Any,
        steps: Any,
        cfg: Any,
        sampler_name: Any,
        scheduler: Any,
        runs: Any = 1,
        candidates: Any = "default",
        rule: Any = RULES[0],
        budget: Any = 30.0,
        name: Any = DEFAULT_NAME,
        schedule: Any = None,
        dense_steps: Any = 0,
        dense_blocks: Any = "",
        patterns: Any = "",
        stripes: Any = 10.0,
        bands: Any = BANDS[0],
        branches: Any = "joint",
        cost: Any = "density",
        error: Any = "normalized",
        lambda_cost: Any = LAMBDA,
        epsilon: Any = EPSILON,
    ) -> io.NodeOutput:
        """Return table, schedule, text and picture; every input is the host's list of values, and of ``positive``,
        ``negative`` and ``latent_image`` there may be several. Raises HeadSearchError, and the like, with one sentence,
        and leaves ``model`` as it was whatever happens."""
        given = {key: value for key, value in locals().items() if key != "cls"}
        links = {key: _listed(key, given.pop(key)) for key in ("positive", "negative", "latent_image")}
        values = {key: _only(key, value) for key, value in given.items()}
        model, given_schedule = values.pop("model"), values.pop("schedule")
        if sentence := missing_problem(**values) or problem(**values, schedule=given_schedule):
            raise HeadSearchError(sentence)
        node_id = cls.hidden.unique_id if cls.hidden is not None else None
        jobs = _jobs(links, values)
        prompts = len(jobs) // int(values["runs"])
        found = run_search(model, jobs, _wanted(values, given_schedule, prompts), node_id)
        file_name, use = saved(found, values["name"]), table_use(found.table)
        text, image = search_text(found, file_name, use), search_image(found, file_name, use)
        show_text(node_id, _headline(found, file_name))
        shown = ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(found.table, found.table.schedule, text, image, ui=shown)


def _first(value: Any) -> Any:
    """The first of the host's list of values, for a check that may come before all are known."""
    return value[0] if isinstance(value, list | tuple) and value else value


def _only(name: str, value: Any) -> Any:
    """The value of an input that takes one; raises HeadSearchError for a list of several."""
    if not isinstance(value, list | tuple):
        return value
    if len(value) != 1:
        raise HeadSearchError(
            f"{name} got {len(value)} values, it takes one; a list is for positive, negative and latent_image only."
        )
    return value[0]


def _listed(name: str, values: Any) -> list[Any]:
    if not values or any(value is None for value in values):
        raise HeadSearchError(f"{name} is missing: what is linked to it gave nothing; connect it.")
    return list(values)


def _jobs(links: dict[str, list[Any]], values: dict[str, Any]) -> list[Job]:
    """Return one job per prompt and seed; raises HeadSearchError where lists do not match."""
    prompts = max(map(len, links.values()))
    for name, found in links.items():
        if len(found) not in (1, prompts):
            raise HeadSearchError(
                f"{name} is a list of {len(found)} beside one of {prompts}; give one, or one for each prompt."
            )
    each = {name: found * (prompts // len(found)) for name, found in links.items()}
    common = int(values["steps"]), float(values["cfg"]), values["sampler_name"], values["scheduler"]
    return [
        Job(positive, negative, latent, (int(values["seed"]) + run) % (MAX_SEED + 1), *common)
        for positive, negative, latent in zip(each["positive"], each["negative"], each["latent_image"])
        for run in range(int(values["runs"]))
    ]


def _wanted(values: dict[str, Any], schedule: Any, prompts: int) -> Wanted:
    own = values["candidates"] == CUSTOM
    return Wanted(
        schedule=read_schedule(DEFAULT_SCHEDULE if schedule is None else schedule),
        candidates=tuple(custom_candidates(values["patterns"]) if own else named_candidates(values["candidates"])),
        rule=values["rule"],
        budget=float(values["budget"]) / 100 if values["rule"] == "budget" else None,
        lam=float(values["lambda_cost"]),
        epsilon=float(values["epsilon"]),
        error=values["error"],
        cost=values["cost"],
        branches=values["branches"],
        bands=values["bands"],
        stripes=float(values["stripes"]) / 100,
        dense_steps=int(values["dense_steps"]),
        dense_blocks=parse_blocks(values["dense_blocks"]),
        prompts=prompts,
    )


def _headline(found: Found, file_name: str) -> str:
    where = f"saved as {file_name}" if file_name else "not saved"
    return f"{where}\nmean density {found.density:.1%}, mean error {found.table.made['mean_error']:.3g}"
