"""The profile in the real host: what it samples is the host's own, and what is planted is found."""

from __future__ import annotations

import gc
import importlib
import math
import weakref

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from fps_common import (
    apply,
    conditioning,
    counting_override,
    load_pack,
    model_of,
    relative,
    run_cases,
    sample,
    shifted,
)

ROOT = load_pack()["FPSAttentionApply"].__module__.rsplit(".nodes.", 1)[0]
PROFILE = importlib.import_module(f"{ROOT}.nodes.profile")
SAMPLING = importlib.import_module(f"{ROOT}.nodes.profile_sampling")
STUDY = importlib.import_module(f"{ROOT}.kernels.profiling.study")
SCHEDULE = importlib.import_module(f"{ROOT}.kernels.schedule").Schedule

# 3 x 12 x 16 = 576 tokens; and 2 x 8 x 16 where only equality counts.
SIZE, SMALL = (3, 24, 32), (2, 16, 32)
STEPS = 6


def latent(size=SIZE, batch: int = 1, channels: int = 16, **more) -> dict:
    return {"samples": torch.zeros(batch, channels, *size), **more}


def job(
    sampler: str = "euler", cfg: float = 1.0, steps: int = STEPS, seed: int = 7, image: dict | None = None, **extra
):
    return SAMPLING.Job(
        conditioning(1, **extra), conditioning(0, **extra), image or latent(), seed, steps, cfg, sampler, "simple"
    )


def profile(model, what=None, goal=("density", 0.4, 25.0, 3), runs: bool = True):
    return PROFILE.run_profile(model, what or job(), STUDY.Goal(*goal), runs, None)


def gated(model, low: float, high: float, floor: float = 0.05):
    """Self-attention counts in full where ``low <= sigma <= high``, and is nearly switched off elsewhere."""
    m = model.clone()

    def gate(args):
        sigma = float(args["transformer_options"]["sigmas"].flatten()[0])
        return args["x"] * (1.0 if low <= sigma <= high else floor)

    m.set_model_patch(gate, "attn1_patch")
    return m


def summary(study) -> dict:
    uniform, proposal = study.uniform, study.proposal
    return {
        "segments": [[s.first, s.last, s.sigmas[0], s.sigmas[-1]] for s in study.segments],
        "harm": study.harm(),
        "runs": [[list(levels), study.psnr(error)] for levels, error in study.known.items() if error > 0],
        "power": study.prediction.power if study.prediction else None,
        "bend": study.prediction.bend if study.prediction else None,
        "densities": [study.levels[i].density for i in proposal.levels],
        "least": study.levels[0].density,
        "work": proposal.work,
        "phases": len(proposal.schedule.phases),
        "predicted": proposal.predicted,
        "measured": None if proposal.measured is None else min(proposal.measured, 999.0),
        "uniform": None if uniform.measured is None else min(uniform.measured, 999.0),
        "uniform_predicted": uniform.predicted,
        "uniform_work": uniform.work,
        "notes": study.notes,
        "one_step": {str(k): v for k, v in study.one_step.items()},
        "text": proposal.schedule.format(),
    }


def dense_is_exact(model, what, counter=None) -> bool:
    """The probed dense run is KSampler's, bit for bit."""
    found = {}
    meter = PROFILE.Meter(model, what.steps, None)
    sampling = SAMPLING.Sampling(model, what, None, meter)

    def prepare(grid):
        levels = PROFILE.ladder(grid)
        plan = PROFILE.plan_rows(grid, levels[:-1])
        found["grid"] = grid
        return plan, PROFILE.plan_effort(PROFILE.model_shape(model), grid.tokens, what.steps, 0.3, float32=True)

    probe = PROFILE.Probe(prepare)
    got = sampling.dense(probe)
    table = probe.finish()
    complete = len(table.entries) == what.steps * len(model.get_model_object("diffusion_model").blocks)
    return bool(torch.equal(got, plain(model, what).double())) and complete


def plain(model, what) -> torch.Tensor:
    import comfy.sample

    image = comfy.sample.fix_empty_latent_channels(model, what.latent["samples"])
    noise = comfy.sample.prepare_noise(image, what.seed, None)
    return comfy.sample.sample(
        model, noise, what.steps, what.cfg, what.sampler_name, what.scheduler, what.positive, what.negative, image,
        noise_mask=what.latent.get("noise_mask"), disable_pbar=True, seed=what.seed,
    )  # fmt: skip


MODEL = shifted(model_of(layers=2), 2.0)


def case_dense_is_exact():
    split = shifted(model_of(layers=2), 2.0)
    split.model.memory_required = lambda *args, **kwargs: 1e30
    masked = latent(SMALL, noise_mask=(torch.arange(32)[None, None, :] < 16).float().expand(1, 16, 32))
    masked["samples"] = torch.randn(1, 16, *SMALL, generator=torch.Generator().manual_seed(2))
    return {
        "euler": dense_is_exact(MODEL, job()),
        "uni_pc with guidance": dense_is_exact(MODEL, job("uni_pc", 5.0, image=latent(SMALL))),
        "guidance in two calls": dense_is_exact(split, job("euler", 5.0, image=latent(SMALL))),
        "batch of two": dense_is_exact(MODEL, job(image=latent(SMALL, batch=2), cfg=5.0)),
        "heun": dense_is_exact(MODEL, job("heun", steps=4, image=latent(SMALL))),
        "euler_ancestral": dense_is_exact(MODEL, job("euler_ancestral", image=latent(SMALL))),
        "masked": dense_is_exact(MODEL, job(image=masked)),
        "odd size": dense_is_exact(MODEL, job(image=latent((3, 23, 29)))),
    }


def case_replayed_runs_are_whole_runs():
    """Handing out known predictions changes nothing: the latent is that of sampling from the start, bit for bit."""
    text = "0.80 dense\n0.40 fp8 x1 all 50% 50%\n0.00 dense\n"
    found = {}
    for name in ("euler", "uni_pc", "dpmpp_2m", "heun", "euler_ancestral", "dpmpp_2m_sde", "lcm", "res_multistep",
                 "euler_cfg_pp", "dpm_adaptive", "sa_solver"):  # fmt: skip
        what = job(name, cfg=3.0, steps=5, image=latent(SMALL))
        meter = PROFILE.Meter(MODEL, 1, None)
        sampling = SAMPLING.Sampling(MODEL, what, None, meter)

        def prepare(grid):
            levels = PROFILE.ladder(grid)
            shape = PROFILE.model_shape(MODEL)
            return PROFILE.plan_rows(grid, levels[:-1]), PROFILE.plan_effort(shape, grid.tokens, 1, 0.3, float32=True)

        sampling.dense(PROFILE.Probe(prepare))
        before = meter.done
        outcome = sampling.run(SCHEDULE.parse(text), "a test")
        whole = plain(apply(MODEL, text), what).double()
        error = float((whole - sampling.reference).square().mean())
        found[name] = {"same": outcome.error == error, "error": error, "one_step": outcome.one_step,
                       "computed": meter.done - before, "all": before}  # fmt: skip
    return found


def _planted(place: str, seed: int) -> dict:
    model = shifted(model_of(layers=2, seed=seed), 2.0)
    what = job(seed=seed)
    sigmas = SAMPLING.Sampling(model, what, None, PROFILE.Meter(model, 1, None)).step_sigmas
    first = {"early": 0, "middle": 2, "late": 4}[place]
    low, high = sigmas[first + 1] - 1e-3, sigmas[first] + 1e-3
    study, _ = profile(gated(model, low, high), what)
    return summary(study) | {"first": first, "last": first + 1}


def case_planted():
    return {f"{place} {seed}": _planted(place, seed) for place in ("early", "middle", "late") for seed in (0, 1)}


def case_planted_without_runs():
    """One-step losses show it; no phases are proposed from them."""
    found = {}
    for place, (low, high) in {"early": (0.8, 1.1), "late": (0.0, 0.5)}.items():
        study, _ = profile(gated(MODEL, low, high), job(), runs=False)
        sigmas = SAMPLING.Sampling(MODEL, job(), None, PROFILE.Meter(MODEL, 1, None)).step_sigmas
        found[place] = summary(study) | {"sigmas": sigmas}
    return found


def case_switched_off():
    """Attention counts nowhere: nothing to find, and nothing may be invented."""
    study, _ = profile(gated(MODEL, 2.0, 3.0, floor=0.0))
    return summary(study)


def case_psnr():
    first, _ = profile(gated(MODEL, 0.5, 0.8), job())
    aimed = first.uniform.measured + 3
    study, _ = profile(gated(MODEL, 0.5, 0.8), job(), ("psnr", 0.3, aimed, 3))
    return summary(study) | {"aimed": aimed, "tries": len(study.tried)}


def case_psnr_out_of_reach():
    study, _ = profile(MODEL, job(steps=3), ("psnr", 0.3, 280.0, 2))
    return summary(study)


def case_one_step():
    study, _ = profile(MODEL, job(steps=1))
    return summary(study)


def case_batch_and_guidance():
    study, facts = profile(MODEL, job("uni_pc", 5.0, steps=4, image=latent(batch=2)))
    return summary(study) | {"steps": facts.model_steps}


def case_stochastic():
    study, facts = profile(MODEL, job("euler_ancestral", steps=4))
    return summary(study) | {"report": PROFILE.profile_text(study, facts)}


def case_reference_tokens():
    extra = {"reference_latents": [torch.randn(1, 16, 1, 24, 32, generator=torch.Generator().manual_seed(4))]}
    study, facts = profile(
        shifted(model_of("fun_ref", layers=2), 2.0), job(steps=3, **extra), ("density", 0.6, 25.0, 3)
    )
    return summary(study) | {"grid": [facts.grid.prefix, *facts.grid.shape]}


def case_already_patched():
    """The model below is profiled, and the one that came in is what it was."""
    patched = apply(MODEL, "0.00 fp8 x1 all 50% 50%")
    before = sample(patched, size=SIZE, steps=2)
    runs_before = len(patched.get_attachment("fpsattention").recorder.runs)
    study, facts = profile(patched, job(steps=3))
    plain_study, _ = profile(MODEL, job(steps=3))
    after = sample(patched, size=SIZE, steps=2)
    return {
        "said": "left aside" in PROFILE.profile_text(study, facts),
        "same as unpatched": study.singles == plain_study.singles,
        "model untouched": bool(torch.equal(before, after)),
        "no runs recorded": len(patched.get_attachment("fpsattention").recorder.runs) == runs_before + 1,
    }


def case_other_nodes_stay():
    """Another node's override gets every dense call, and keeps what stays dense."""
    under, calls = counting_override(MODEL)
    profile(under, job(steps=3), runs=False)
    dense = 3 * 2 * 2
    return {"calls": len(calls), "dense": dense}


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


def case_node():
    """The node itself: schedule, text, report, picture."""
    out = PROFILE.FPSAttentionProfile.execute(
        MODEL, conditioning(1), conditioning(0), latent(), 3, 4, 1.0, "euler", "simple", "rows", "density", 0.5, 25.0, 2
    ).result
    sparse = sample(apply(MODEL, out[1]), size=SIZE, steps=2)
    return {
        "same": SCHEDULE.parse(out[1]) == out[0],
        "report": out[2],
        "image": list(out[3].shape),
        "range": [float(out[3].min()), float(out[3].max())],
        "runs": relative(sparse, sample(MODEL, size=SIZE, steps=2)),
    }


def case_host_names():
    from comfy.patcher_extension import WrappersMP

    return {"predict_noise": WrappersMP.PREDICT_NOISE == SAMPLING.PREDICT_NOISE}


run_cases(globals())
