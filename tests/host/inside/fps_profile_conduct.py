"""How a profile behaves: its progress, when it is broken off, and what it refuses before or while it samples."""

from __future__ import annotations

import gc
import math
import sys
import types
import weakref

import comfy.model_management
import comfy.utils
import torch
from fps_common import apply, conditioning, counting_override, pack_module, run_cases, sample
from fps_profiled import MODEL, PROFILE, SAMPLING, SIZE, job, latent, profile
from fps_stand_ins import cached_forward


def _broken_off(error) -> dict:
    """Break off in mid-run by ``error()`` at the 30th attention call."""
    model = MODEL.clone()
    calls = []

    def override(func, q, k, v, *args, **kwargs):
        calls.append(1)
        if len(calls) == 30:
            error()
        return func(q, k, v, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    options = repr(sorted(model.model_options["transformer_options"]))
    expected = sample(MODEL, size=SIZE, steps=2)
    try:
        profile(model, job(steps=9))
        raised, text = None, ""
    except BaseException as caught:
        raised, text = type(caught).__name__, str(caught)
    comfy.model_management.interrupt_current_processing(False)
    again = sample(model, size=SIZE, steps=2)
    return {
        "raised": raised,
        "text": text,
        "clean": bool(torch.equal(again, expected))
        and repr(sorted(model.model_options["transformer_options"])) == options,
    }


def case_cancelled():
    return _broken_off(lambda: comfy.model_management.interrupt_current_processing(True))


def case_out_of_memory():
    def error():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return _broken_off(error)


def _left(error=None) -> list[str]:
    """Run a profile, broken off by ``error`` if given, and say what of it lives on until a garbage collection."""
    seen = {}
    kept = SAMPLING.Sampling.dense

    def dense(sampling, probe):
        seen.update(sampling=weakref.ref(sampling), meter=weakref.ref(sampling.meter), probe=weakref.ref(probe))
        try:
            return kept(sampling, probe)
        finally:
            seen["prediction"] = weakref.ref(sampling._record[0].output)
            # In the middle of what follows.
            if error is not None:
                sampling.run = lambda *_: error()

    SAMPLING.Sampling.dense = dense
    gc.collect()
    gc.disable()
    try:
        profile(MODEL, job(steps=3))
    except BaseException as caught:
        assert error is not None, caught
    finally:
        gc.enable()
        SAMPLING.Sampling.dense = kept
    return [name for name, reference in seen.items() if reference() is not None]


def case_nothing_is_left():
    def cancel():
        raise comfy.model_management.InterruptProcessingException()

    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return {"done": _left(), "cancelled": _left(cancel), "out of memory": _left(full)}


def _left_by_a_failing_node(error) -> dict:
    """Run a profile that ``error()`` breaks off in a sparse run, with the error handled as the host does it: its frame
    and the error's hold each other. Say which patchers live on, and after a collection whether the host lost its
    model."""
    import comfy.model_patcher

    made, calls, kept = [], [], comfy.model_patcher.ModelPatcher.clone
    model = MODEL.clone()

    def clone(patcher, *args, **kwargs):
        new = kept(patcher, *args, **kwargs)
        made.append(weakref.ref(new))
        return new

    def override(func, *args, **kwargs):
        calls.append(1)
        if error is not None and len(calls) == 30:
            error()
        return func(*args, **kwargs)

    def node() -> str:
        try:
            profile(model, job(steps=6))
        except BaseException:
            kind, _, _trace = sys.exc_info()
            return kind.__name__
        return "nothing"

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    comfy.model_patcher.ModelPatcher.clone = clone
    gc.collect()
    gc.disable()
    try:
        raised = node()
        alive = sum(patcher() is not None for patcher in made)
    finally:
        gc.enable()
        comfy.model_patcher.ModelPatcher.clone = kept
        comfy.model_management.interrupt_current_processing(False)
    gc.collect()
    lost = sum(loaded.is_dead() for loaded in comfy.model_management.current_loaded_models)
    return {"raised": raised, "made": len(made), "alive": alive, "lost": lost}


def case_no_patcher_is_left():
    def refused():
        raise PROFILE.ProfileError("a sentence.")

    def failed():
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("another node's") from None

    def full():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def cancelled():
        comfy.model_management.interrupt_current_processing(True)

    ends = {"nothing": None, "refused": refused, "failed": failed, "full": full, "cancelled": cancelled}
    return {name: _left_by_a_failing_node(end) for name, end in ends.items()}


def case_progress():
    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview, node_id=None: seen.append((value, total)))
    try:
        profile(MODEL, job(steps=3), runs=False)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    values = [value for value, _ in seen]
    return {"rising": values == sorted(values), "full": seen[-1][0] == seen[-1][1], "count": len(seen)}


def case_bad_input():
    def said(call) -> str:
        try:
            call()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    class Other:
        model = torch.nn.Linear(1, 1)

        def get_model_object(self, name):
            return self.model

    noise = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    execute = PROFILE.FPSAttentionProfile.execute
    usual = {"model": MODEL, "positive": conditioning(1), "negative": conditioning(0), "latent_image": latent(),
             "seed": 0, "steps": 3, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}  # fmt: skip
    cases = {
        "not wan": {"model": Other()},
        "channels": {"latent_image": {"samples": noise}},
        "no latent": {"latent_image": {"samples": torch.zeros(0, 16, *SIZE)}},
        "no tensor": {"latent_image": {}},
        "dimensions": {"latent_image": {"samples": torch.zeros(1, 16, 24)}},
        "density": {"density": 0.01},
        "rows for psnr": {"effort": "rows", "aim": "psnr"},
        "steps": {"steps": 0},
        "phases": {"phases": 99},
        "nan": {"density": math.nan},
        "seed": {"seed": -1},
        "one tile": {"latent_image": latent((2, 4, 4))},
    }
    return {name: said(lambda change=change: execute(**(usual | change))) for name, change in cases.items()}


def case_density_out_of_reach():
    """What is said of a density that the grid cannot reach, and whether the host loaded the model for that."""
    import comfy.sampler_helpers

    windows = MODEL.clone()
    windows.model_options["context_handler"] = None
    wrapped = MODEL.clone()
    wrapped.add_wrapper_with_key("apply_model", "another pack", lambda executor, *args: executor(*args))
    frames = {"time_dim_concat": torch.zeros(1, 16, 1, *SIZE[1:])}
    image = {"concat_latent_image": torch.zeros(1, 16, *SIZE), "concat_mask": torch.zeros(1, 1, *SIZE)}
    found, kept = {}, comfy.sampler_helpers.prepare_sampling
    for name, model, extra, size in (
        ("plain", MODEL, {}, SIZE),
        ("image to video", MODEL, image, SIZE),
        ("one tile", MODEL, {}, (2, 4, 4)),
        ("frames", MODEL, frames, SIZE),
        ("windows", windows, {}, SIZE),
        ("wrapped", wrapped, {}, SIZE),
    ):
        loaded = []

        def prepare(*args, loaded=loaded, **kwargs):
            loaded.append(1)
            return kept(*args, **kwargs)

        comfy.sampler_helpers.prepare_sampling = prepare
        try:
            told = _refused(model, job(image=latent(size), **extra), goal=("density", 0.01, 25.0, 3))
        finally:
            comfy.sampler_helpers.prepare_sampling = kept
        found[name] = told | {"loaded": bool(loaded)}
    return found


def _refused(model, what=None, **options) -> dict:
    """What the profile of ``model`` says, and after how many steps of the model."""
    counted, calls = counting_override(model)
    try:
        profile(counted, what or job(steps=10), **options)
        text = "nothing"
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    # Two layers, self- and cross-attention.
    return {"text": text, "steps": len(calls) / 4}


def case_core_caches():
    """The host's own EasyCache and LazyCache, behind and before a patch of ours: known before anything is sampled."""
    from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode

    found = {}
    for name, node in (("EasyCache", EasyCacheNode), ("LazyCache", LazyCacheNode)):

        def cached(model, node=node):
            return node.execute(model, 0.9, 0.0, 1.0, False).result[0]

        orders = {
            "alone": cached(MODEL),
            "behind": cached(apply(MODEL, "0.00 fp8 x1 all 50% 50%")),
            "before": apply(cached(MODEL), "0.00 fp8 x1 all 50% 50%"),
        }
        found[name] = {order: _refused(model) for order, model in orders.items()}
    return found


def _skipping(level: str, skipped: int):
    """Another pack's cache: in call ``skipped`` it hands out what the call before gave."""
    m, given_out = MODEL.clone(), []

    def cached(compute):
        given_out.append(given_out[-1] if len(given_out) == skipped else compute())
        return given_out[-1]

    def wrapper(executor, *args, **kwargs):
        return cached(lambda: executor(*args, **kwargs))

    def function(apply_model, given):
        return cached(lambda: apply_model(given["input"], given["timestep"], **given["c"]))

    if level == "function":
        m.set_model_unet_function_wrapper(function)
    else:
        m.add_wrapper_with_key(level, "another pack", wrapper)
    return m


LEVELS = ("predict_noise", "apply_model", "diffusion_model", "function")


def case_other_caches():
    """Caches that nobody knows by name, wherever they hook in: refused in the first step that they skip."""
    found = {level: _refused(_skipping(level, 5)) for level in LEVELS}
    found["guidance"] = _refused(_skipping("diffusion_model", 5), job("euler", 3.0, steps=10))
    return found | {"forward": _refused(cached_forward(MODEL, []))}


def case_caches_in_a_sparse_run_only():
    """A cache whose threshold only a sparse run crosses: no schedule comes of it."""
    # Behind a dense run and four one-step losses, whose other predictions come from the record.
    calls = {level: 55 if level == "predict_noise" else 19 for level in LEVELS}
    return {level: _refused(_skipping(level, calls[level])) for level in LEVELS}


def case_replaced_forward():
    """A forward without any patch point: said in the first step, not after the last."""
    m, steps = MODEL.clone(), []
    inner = m.get_model_object("diffusion_model")

    def function(apply_model, given):
        steps.append(1)
        inner.forward_orig = types.MethodType(lambda self, x, *args, **kwargs: torch.zeros_like(x), inner)
        try:
            return apply_model(given["input"], given["timestep"], **given["c"])
        finally:
            del inner.forward_orig

    m.set_model_unet_function_wrapper(function)
    return _refused(m) | {"steps": len(steps)}


def case_backend():
    """Whether sparse attention can run is known before anything is sampled, and what it runs on is said."""
    slow = MODEL.clone()
    slow.load_device = torch.device("cuda")
    odd = types.SimpleNamespace(
        get_model_object=lambda name: types.SimpleNamespace(dim=192, num_heads=2), load_device="cpu", model=MODEL.model
    )
    try:
        pack_module("nodes.profile_checks").check_backend(odd)
        head_dim = "nothing"
    except Exception as error:
        head_dim = f"{type(error).__name__}: {error}"
    study, _ = profile(MODEL, job(steps=2), runs=False)
    return {"slow": _refused(slow, runs=False), "head dim": head_dim, "notes": study.notes}


run_cases(globals())
