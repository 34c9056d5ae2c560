"""The profile in the real host: what it samples is the host's own, and what is planted is found."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from fps_common import (
    apply,
    conditioning,
    counting_override,
    model_of,
    pack_module,
    relative,
    run_cases,
    sample,
    shifted,
)
from fps_profiled import MODEL, PROFILE, SAMPLING, SCHEDULE, SIZE, SMALL, job, latent, profile


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
    from comfy_extras.nodes_apg import APG

    # Its momentum runs through all steps.
    remembers = APG.execute(MODEL, 1.0, 5.0, -0.75).result[0]
    found = {}
    for name in ("euler", "uni_pc", "dpmpp_2m", "heun", "euler_ancestral", "dpmpp_2m_sde", "lcm", "res_multistep",
                 "euler_cfg_pp", "dpm_adaptive", "sa_solver", "euler with APG"):  # fmt: skip
        model = remembers if "APG" in name else MODEL
        what = job(name.split()[0], cfg=3.0, steps=5, image=latent(SMALL))
        meter = PROFILE.Meter(model, 1, None)
        sampling = SAMPLING.Sampling(model, what, None, meter)

        def prepare(grid):
            levels = PROFILE.ladder(grid)
            shape = PROFILE.model_shape(MODEL)
            return PROFILE.plan_rows(grid, levels[:-1]), PROFILE.plan_effort(shape, grid.tokens, 1, 0.3, float32=True)

        sampling.dense(PROFILE.Probe(prepare))
        before = meter.done
        outcome = sampling.run(SCHEDULE.parse(text), "a test")
        whole = plain(apply(model, text), what).double()
        error = float((whole - sampling.reference).square().mean())
        found[name] = {"same": outcome.error == error, "error": error, "one_step": outcome.one_step,
                       "computed": meter.done - before, "all": before, "notes": sampling.notes}  # fmt: skip
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


def case_expected():
    """What the log says is going to run, and what ran."""
    found, kept = {}, PROFILE.Meter.expect
    for sampler in ("euler", "euler_cfg_pp"):
        for runs in (False, True):
            told = {}

            def expect(meter, total, dense, planned, sentence, probes, told=told):
                told.update(total=total, dense=dense, sentence=sentence, probes=probes, spent=meter._probed)
                kept(meter, total, dense, planned, sentence, probes)

            PROFILE.Meter.expect = expect
            try:
                _, facts = profile(MODEL, job(sampler, image=latent(SMALL)), runs=runs)
            finally:
                PROFILE.Meter.expect = kept
            name = f"{sampler} {'runs' if runs else 'rows'}"
            found[name] = told | {"done": facts.model_steps, "spent": len(told["spent"])}
    return found


def case_seconds_of_a_dense_step():
    """A clock on which dense steps take a second each and sparse ones ten."""
    meters, found = pack_module("nodes.profile_meter"), {}
    kept = meters.time
    try:
        for dense in (1, 2, 3, 8):
            clock = iter([*range(dense), *range(100, 1000, 10)])
            meters.time = SimpleNamespace(perf_counter=lambda clock=clock: float(next(clock)))
            meter = meters.Meter(MODEL, 1, None)
            meter.expect(50, dense, 40.0, "a test.")
            for _ in range(20):
                meter.step(None)
            found[str(dense)] = meter.seconds
    finally:
        meters.time = kept
    return found


def case_time_to_go():
    """A clock on which a dense step takes a second, its two probes three each, and a later step two: what is said."""
    meters, said = pack_module("nodes.profile_meter"), []
    kept, log = meters.time, meters.logger.info
    clock = SimpleNamespace(now=0.0)
    meters.time = SimpleNamespace(perf_counter=lambda: clock.now)
    meters.logger.info = lambda text, *values: said.append(text % values)
    try:
        meter = meters.Meter(MODEL, 1, None)
        meter.expect(10, 5, 8.0, "a test.", probes=10)
        for step in range(8):
            clock.now += 1.0 if step < 5 else 2.0
            for _ in range(2 if step < 5 else 0):
                clock.now += 3.0
                meter.spend(3.0)
            meter.step(None)
        meter.say("the rest")
    finally:
        meters.time, meters.logger.info = kept, log
    return said


def case_measures():
    """What the picture's bars are and what the report says of them: all three measures."""
    from PIL import ImageDraw

    found, kept = {}, ImageDraw.ImageDraw.text
    for name, what, runs in (
        ("final latent", job(steps=3, image=latent(SMALL)), True),
        ("one-step loss", job(steps=3, image=latent(SMALL)), False),
        ("row error", job("euler_cfg_pp", steps=3, image=latent(SMALL)), False),
    ):
        study, facts = profile(MODEL, what, runs=runs)
        drawn = []

        def text(draw, place, letters, *args, drawn=drawn, **kwargs):
            drawn.append((place[0], draw.textlength(letters, font=kwargs["font"]), letters))
            return kept(draw, place, letters, *args, **kwargs)

        ImageDraw.ImageDraw.text = text
        try:
            PROFILE.profile_image(study, facts)
        finally:
            ImageDraw.ImageDraw.text = kept
        (bars,) = (part for part in drawn if part[2].startswith("Bars"))
        # A step that nobody probed is not counted.
        study.table.entries = {place: entry for place, entry in study.table.entries.items() if place[0] != 1}
        report = PROFILE.profile_text(study, facts)
        found[name] = {"told by": study.told_by, "title": bars[2], "right": bars[0] + bars[1], "report": report}
    return found


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
