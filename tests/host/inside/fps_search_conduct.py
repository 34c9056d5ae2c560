"""How a search behaves: its progress, when it is broken off, and what it refuses before or while it samples."""

from __future__ import annotations

import gc
import importlib
import logging
import math
import sys
import tempfile
import weakref
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
import torch
from fps_common import conditioning, counting_override, run_cases, sample
from fps_searched import MODEL, ROOT, RUN, SIZE, files, latent, searched
from fps_stand_ins import cached_forward

_SEARCH = importlib.import_module(f"{ROOT}.kernels.headsearch.search").HeadSearch
_ATTENTION = importlib.import_module(f"{ROOT}.nodes.search_attention")
_METER = importlib.import_module(f"{ROOT}.nodes.profile_meter").Meter
# Fast: four candidates, one pass, no look.
FEW = {"candidates": "paper", "rule": "ours", "stripes": 0.0}


def _broken_off(error, at: int) -> dict:
    """Break off at the ``at``-th searched call by ``error()``, with the error handled as the host does it: its frame
    and the error's hold each other. Say what lives on, whether the host lost its model, and what was written."""
    made, calls, seen = [], [], {}
    clone, attend = comfy.model_patcher.ModelPatcher.clone, _SEARCH.attend
    model = MODEL.clone()
    options = repr(model.model_options)
    expected, before = sample(MODEL, size=SIZE), files()

    def cloned(patcher, *args, **kwargs):
        new = clone(patcher, *args, **kwargs)
        made.append(weakref.ref(new))
        return new

    def attended(search, *args, **kwargs):
        seen["search"] = weakref.ref(search)
        calls.append(1)
        if error is not None and len(calls) == at:
            error()
        out = attend(search, *args, **kwargs)
        seen["output"] = weakref.ref(out)
        return out

    def node() -> tuple[str, str]:
        try:
            searched(model=model, name="tests/broken", **FEW)
        except BaseException:
            kind, value, _trace = sys.exc_info()
            return kind.__name__, str(value)
        return "nothing", ""

    comfy.model_patcher.ModelPatcher.clone, _SEARCH.attend = cloned, attended
    gc.collect()
    gc.disable()
    try:
        raised, text = node()
        alive = sum(patcher() is not None for patcher in made)
        left = [name for name, reference in seen.items() if reference() is not None]
    finally:
        gc.enable()
        comfy.model_patcher.ModelPatcher.clone, _SEARCH.attend = clone, attend
        comfy.model_management.interrupt_current_processing(False)
    gc.collect()
    lost = sum(loaded.is_dead() for loaded in comfy.model_management.current_loaded_models)
    return {
        "raised": raised, "text": text, "made": len(made), "alive": alive, "left": left, "lost": lost,
        "clean": repr(model.model_options) == options and torch.equal(sample(model, size=SIZE), expected),
        "written": [name for name in files() if name not in before], "calls": len(calls),
    }  # fmt: skip


def case_broken_off():
    def cancel():
        comfy.model_management.interrupt_current_processing(True)

    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def fail():
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("another node's") from None

    ends = {"done": None, "cancelled": cancel, "out of memory": full, "failed": fail}
    return {name: _broken_off(end, 3) for name, end in ends.items()}


def case_progress():
    seen, said = [], []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger(_METER.__module__)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: seen.append((value, total)))
    kept, efforts = RUN.search_effort, []

    def effort(*args, **kwargs):
        efforts.append(kept(*args, **kwargs))
        return efforts[-1]

    RUN.search_effort = effort
    try:
        searched(candidates="paper")
        searched(**FEW, runs=2)
    finally:
        RUN.search_effort = kept
        comfy.utils.set_progress_bar_global_hook(None)
        logger.removeHandler(handler)
        logger.setLevel(level)
    return {"seen": seen, "said": said, "efforts": [each.dense_runs for each in efforts]}


def _said(**changes) -> str:
    try:
        searched(**(FEW | changes))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def case_bad_input():
    class Other:
        model = torch.nn.Linear(1, 1)

        def get_model_object(self, name):
            return self.model

    noise = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    cases = {
        "not wan": {"model": Other()},
        "no model": {"model": "a model"},
        "channels": {"latent_image": {"samples": noise}},
        "no tensor": {"latent_image": {}},
        "no conditioning": {"positive": 3},
        "nothing linked": {"positive": None},
        "no text": {"name": None},
        "empty prompt": {"positive": []},
        "lists": {"positive_list": [conditioning(1)] * 3, "latent_image_list": [latent(), latent()]},
        "list of seeds": {"seed_list": [1, 2]},
        "sizes": {"positive_list": [conditioning(1)] * 2, "latent_image_list": [latent(), latent((3, 16, 16))]},
        "budget": {"rule": "budget", "budget": math.nan},
        "no budget": {"rule": "budget", "budget": 0.0},
        "least": {
            "rule": "budget", "budget": 10.0, "candidates": "custom",
            "patterns": "window all 50% 50%\nwindow 1 all all",
        },
        "runs": {"runs": 0},
        "rule": {"rule": "mine"},
        "sampler": {"sampler_name": "nobody"},
        "separate": {"branches": "separate"},
        "dense steps": {"dense_steps": 3},
        "all blocks": {"dense_blocks": "0-1"},
        "no block": {"dense_blocks": "7"},
        "windows": {"schedule": "0 fp8 x1 all all all"},
        "online": {"schedule": "0.5 fp8 x1 svg 0.3\n0 fp8 x1 heads"},
        "no phase": {"schedule": "0.999 fp8 x1 heads\n0 dense", "sampler_name": "euler", "dense_steps": 1},
        "schedule": {"schedule": 3},
        "patterns": {"candidates": "custom", "patterns": "spiral 3"},
        "only full": {"candidates": "custom", "patterns": "full\nskip"},
        "one tile": {"latent_image": latent((2, 4, 4))},
        "name": {"name": "../../up"},
        "absolute": {"name": "/tmp/heads"},
        "no name": {"name": " "},
        "lambda": {"lambda_cost": -1.0},
    }  # fmt: skip
    return {name: _said(**change) for name, change in cases.items()}


def _refused(model, **options) -> dict:
    """What a search on ``model`` says, and after how many steps of the model."""
    counted, calls = counting_override(model)
    text = _said(model=counted, **options)
    # Two layers; while searching, only cross-attention comes through.
    return {"text": text, "calls": len(calls)}


def case_core_caches():
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    return {
        name: _refused(node.execute(MODEL, 0.9, 0.0, 1.0, False).result[0])
        for name, node in (("EasyCache", EasyCacheNode), ("LazyCache", LazyCacheNode))
    }


def case_other_caches():
    """A cache that nobody knows by name, in its third step; and one that brings a forward of its own."""
    m, given_out = MODEL.clone(), []

    def wrapper(executor, *args, **kwargs):
        given_out.append(given_out[-1] if len(given_out) == 2 else executor(*args, **kwargs))
        return given_out[-1]

    m.add_wrapper_with_key("diffusion_model", "another pack", wrapper)
    return {"wrapper": _refused(m, steps=5), "forward": _refused(cached_forward(MODEL, []), steps=10)}


def case_attention_of_another_node():
    """A node that takes over the attention of one block, and one that takes over all."""
    found = {}
    for name, blocks in (("one", [1]), ("all", [0, 1])):
        m = MODEL.clone()
        for index in blocks:

            def patch(args, extra):
                return {"img": args["img"] * 1.0}

            m.set_model_patch_replace(patch, "dit", "double_block", index)
        try:
            table, _, text, _ = searched(model=m, **FEW)
            full = [bool((band.chosen[:, 1] == band.chosen[0, 1, 0]).all()) for band in table.bands]
            found[name] = {"text": text, "full": [str(table.patterns[table.bands[0].chosen[0, 1, 0]]), *full]}
        except Exception as error:
            found[name] = {"text": f"{type(error).__name__}: {error}"}
    return found


def case_a_table_of_that_name_elsewhere():
    """A table that was moved to another folder of the host's is not hidden by a new one, nor hides it."""
    with tempfile.TemporaryDirectory() as folder:
        moved = Path(folder) / "tests" / "moved_00001_.json"
        moved.parent.mkdir()
        moved.write_text("{}")
        folder_paths.add_model_folder_path("fpsattention", folder, is_default=True)
        try:
            text = searched(name="tests/moved", **FEW)[2]
        finally:
            folder_paths.folder_names_and_paths["fpsattention"][0].remove(folder)
    return {"text": text, "written": [name for name in files() if name.startswith("moved")]}


def case_values_that_are_no_numbers():
    """A model that is broken as a whole, whether heads are looked at before or not, and one with a broken block."""

    def broken(executor, x, *args, **kwargs):
        return executor(x * math.nan, *args, **kwargs)

    def patch(args, extra):
        extra["original_block"]({**args, "img": args["img"] * math.nan})
        return {"img": args["img"]}

    m, one, found = MODEL.clone(), MODEL.clone(), {}
    m.add_wrapper_with_key("diffusion_model", "another pack", broken)
    one.set_model_patch_replace(patch, "dit", "double_block", 1)
    before = files()
    for name, change in (
        ("ours", {}),
        ("mse", {"error": "mse"}),
        ("budget", {"rule": "budget"}),
        ("look", {"stripes": 10.0}),
    ):
        found[name] = _said(model=m, **change)
    found["written"] = [name for name in files() if name not in before]
    table, _, found["text"], _ = searched(model=one, **FEW)
    found["full"] = all(str(table.patterns[i]) == "Full()" for band in table.bands for i in band.chosen[0, 1])
    return found


def case_where_it_cannot_run():
    slow = MODEL.clone()
    slow.load_device = torch.device("cuda")
    return _refused(slow)


def case_a_folder_that_cannot_be_written():
    """The table is not lost."""
    module = importlib.import_module(f"{ROOT}.nodes.search_text")
    kept = module.write_head_table

    def fail(path, table):
        raise OSError(28, "No space left on device")

    module.write_head_table = fail
    try:
        table, _, text, _ = searched(**FEW)
    finally:
        module.write_head_table = kept
    return {"layers": table.layers, "text": text}


run_cases(globals())
