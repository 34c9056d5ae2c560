"""What scripts about the search of head patterns share: the node's modules, a small search, and the engine's own."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import folder_paths
import torch
from fps_common import conditioning, load_pack, model_of, shifted

ROOT = load_pack()["FPSAttentionApply"].__module__.rsplit(".nodes.", 1)[0]
NODE = load_pack()["FPSAttentionSearchHeads"]
RUN = importlib.import_module(f"{ROOT}.nodes.search_run")
OWN = importlib.import_module(f"{ROOT}.nodes.own_sampling")
ENGINE = importlib.import_module(f"{ROOT}.kernels.headsearch.search")
CANDIDATES = importlib.import_module(f"{ROOT}.kernels.headsearch.candidates")
GRID = importlib.import_module(f"{ROOT}.kernels.grid")
SCHEDULE = importlib.import_module(f"{ROOT}.kernels.schedule").Schedule

# What is saved is nobody's, and gone with the process.
_OUTPUT = tempfile.TemporaryDirectory()
folder_paths.set_output_directory(_OUTPUT.name)

# 3 x 12 x 16 = 576 tokens in nine tiles.
SIZE, STEPS = (3, 24, 32), 3
MODEL = shifted(model_of(layers=2), 3.0)


def latent(size=SIZE, batch: int = 1, channels: int = 16, **more) -> dict:
    return {"samples": torch.zeros(batch, channels, *size), **more}


def given(**changes) -> dict:
    """What the host hands to the node: a list for every input."""
    usual = {
        "model": MODEL, "positive": conditioning(1), "negative": conditioning(0), "latent_image": latent(), "seed": 7,
        "steps": STEPS, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "runs": 1,
        "candidates": "default", "rule": "budget", "budget": 40.0, "name": "tests/found",
    }  # fmt: skip
    lists = {key: value for key, value in changes.items() if key.endswith("_list")}
    single = {key: [value] for key, value in (usual | changes).items() if key not in lists}
    return single | {key.removesuffix("_list"): value for key, value in lists.items()}


def searched(**changes):
    """Return table, schedule, text and picture."""
    return NODE.execute(**given(**changes)).result


def files() -> list[str]:
    folder = Path(folder_paths.get_output_directory()) / "fpsattention" / "tests"
    return sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []


def wanted(candidates="default", **request):
    """The engine's request for a run of ``STEPS`` steps, made here anew."""
    import comfy.samplers

    sampler = comfy.samplers.KSampler(MODEL, STEPS, MODEL.load_device, "euler", "simple", 1.0, MODEL.model_options)
    sigmas = [float(sigma) for sigma in sampler.sigmas][:-1]
    patterns = CANDIDATES.read_candidates(CANDIDATES.SETS[candidates])
    usual = {"schedule": SCHEDULE.parse("0 fp8 x1 heads"), "bands": ENGINE.step_bands(sigmas)}
    return ENGINE.Request(**(usual | {"candidates": tuple(patterns)} | request))


def engine_on(model, request, clips, *, cfg=1.0, passes=1, layers=2, size=SIZE, sampler="euler", grid=None):
    """Return the engine's search on ``model`` with nothing of the node: an override that counts attention calls, and
    the host's own sampling of ``clips``, each the positive prompt's number and the seed."""
    import comfy.sample

    search = ENGINE.HeadSearch(request, grid or GRID.TokenGrid(3, 12, 16), layers, 2)
    seen = {}

    def override(func, q, k, v, heads, **kwargs):
        options = kwargs["transformer_options"]
        block, sigma = options["block_index"], float(options["sigmas"].flatten()[0])
        # The same options all through a call of the model.
        first = seen.get(block) != id(options)
        seen[block] = id(options)
        if not first or not search.searches(sigma, block):
            return func(q, k, v, heads, **kwargs)
        b, s, _ = q.shape
        order = options["cond_or_uncond"]
        rows = [order[i * len(order) // b] for i in range(b)]
        return search.attend(block, sigma, *(x.view(b, s, heads, -1) for x in (q, k, v)), rows).reshape(b, s, -1)

    m = model.clone()
    m.model_options["transformer_options"] = {
        **m.model_options.get("transformer_options", {}),
        "optimized_attention_override": override,
    }
    image = torch.zeros(1, 16, *size)
    for number in range(passes):
        for prompt, seed in clips:
            seen.clear()
            noise = comfy.sample.prepare_noise(image, seed)
            comfy.sample.sample(
                m, noise, STEPS, cfg, sampler, "simple", conditioning(prompt), conditioning(0), image, disable_pbar=True
            )
        if number + 1 < passes:
            search.next_pass()
    return search
