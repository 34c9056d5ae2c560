"""Search Head Patterns against the engine itself, and its table in a sampler's run."""

from __future__ import annotations

import importlib

import numpy as np
import torch
from fps_common import apply, conditioning, load_pack, model_of, run_cases, run_summary, runs, sample, shifted
from fps_searched import MODEL, ROOT, SIZE, engine_on, files, latent, searched, wanted

_HEADS = importlib.import_module(f"{ROOT}.nodes.heads")


def _same(table, search, passes: int = 1) -> dict:
    """Compare choice by choice: the patterns in words, and the errors."""
    own = search.table("", {})
    words = [[[str(t.patterns[i]) for i in band.chosen.reshape(-1)] for band in t.bands] for t in (table, own)]
    return {
        "same": words[0] == words[1] and [b.until for b in table.bands] == [b.until for b in own.bands],
        "choices": sum(map(len, words[0])),
        "patterns": len({word for band in words[0] for word in band}),
        "errors": [table.made["mean_error"], own.made["mean_error"]],
        "cost": table.made["mean_cost"],
    }


def case_budget_is_the_engines():
    found = {}
    for budget in (20.0, 40.0, 70.0):
        table = searched(budget=budget, stripes=0.0)[0]
        found[str(budget)] = _same(table, engine_on(MODEL, wanted(budget=budget / 100), [(1, 7)], passes=2))
    return found


def case_rules_are_the_engines():
    rule = importlib.import_module(f"{ROOT}.kernels.headsearch.rule").Rule
    ours, _, _, _ = searched(rule="ours", stripes=0.0, lambda_cost=0.01, epsilon=0.03)
    paper, _, _, _ = searched(rule="paper", candidates="paper", stripes=0.0)
    return {
        "ours": _same(ours, engine_on(MODEL, wanted(rule=rule(0.01, 0.03)), [(1, 7)])),
        "paper": _same(paper, engine_on(MODEL, wanted("paper", rule=rule(), error="mse"), [(1, 7)])),
    }


def case_prompts_and_runs_are_the_engines():
    """Two prompts as a list, two seeds each."""
    prompts = [conditioning(1), conditioning(2)]
    table = searched(positive_list=prompts, runs=2, rule="ours", stripes=0.0)[0]
    clips = [(prompt, seed) for prompt in (1, 2) for seed in (7, 8)]
    rule = importlib.import_module(f"{ROOT}.kernels.headsearch.rule").Rule
    return _same(table, engine_on(MODEL, wanted(rule=rule(0.05, 0.05)), clips)) | {
        "clips": table.made["clips"], "prompts": table.made["prompts"], "seeds": table.made["seeds"],
    }  # fmt: skip


def case_branches_in_one_call_and_in_two():
    """Guidance with patterns of its own for the negative prompt; little memory calls the model once per branch."""
    options = {"cfg": 5.0, "branches": "separate", "stripes": 0.0}
    table = searched(**options)[0]
    engine = engine_on(MODEL, wanted(budget=0.4, branches="separate"), [(1, 7)], cfg=5.0, passes=2)
    kept = MODEL.model.memory_required
    MODEL.model.memory_required = lambda *args, **kwargs: 1e30
    try:
        apart = searched(**options)[0]
    finally:
        MODEL.model.memory_required = kept
    return _same(table, engine) | {
        "branches": table.branches,
        "differ": any((band.chosen[0] != band.chosen[1]).any() for band in table.bands),
        "apart": table.digest == apart.digest,
    }


def case_joint_guidance_is_the_engines():
    table = searched(cfg=5.0, stripes=0.0, sampler_name="heun")[0]
    engine = engine_on(MODEL, wanted(budget=0.4), [(1, 7)], cfg=5.0, passes=2, sampler="heun")
    return _same(table, engine) | {"branches": table.branches}


def case_stripes_join_the_candidates():
    """One dense run more; what it shows is in the table. Heads of random weights look at no few columns, so here all
    count as if they did."""
    classify = importlib.import_module(f"{ROOT}.kernels.headsearch.classify")
    kept, classify.CONCENTRATED = classify.CONCENTRATED, -10.0
    try:
        table = searched(stripes=20.0)[0]
    finally:
        classify.CONCENTRATED = kept
    without = searched(stripes=0.0)[0]
    return {
        "evidence": table.made["evidence"],
        "more": [word for word in table.made["candidates"] if word not in without.made["candidates"]],
        "none": "evidence" in without.made,
    }


def case_dense_steps_blocks_and_phases():
    table = searched(dense_steps=1, dense_blocks="1", budget=30.0, stripes=0.0)[0]
    phases = searched(schedule="0.9 dense\n0.7 bf16 - heads\n0 fp8 x1 heads", bands="phases", budget=30.0, stripes=0.0)[
        0
    ]
    densities = [table.head_densities(_tiling(table), band)[0] for band in range(len(table.bands))]
    return {
        "schedule": table.schedule.format(),
        "first": bool((densities[0] == 1).all()),
        "block": bool(all((each[1] == 1).all() for each in densities)),
        "rest": float(np.mean([each[0] for each in densities[1:]])),
        "phases": [band.until for band in phases.bands],
    }


def _tiling(table):
    grid = importlib.import_module(f"{ROOT}.kernels.grid")
    return grid.choose_tiling(table.grid, table.slots, table.tile)


def case_its_file_runs():
    """Saved, loaded by name, run by FPSAttention (Wan): the report's density is the table's."""
    before = files()
    table, schedule, text, image = searched(name="tests/runs")
    again = searched(name="tests/runs")[0]
    written = [name for name in files() if name not in before]
    loaded, loaded_schedule, _, _ = load_pack()["FPSAttentionLoadHeads"].execute(f"tests/{written[0]}").result
    node = load_pack()["FPSAttentionApply"]
    patched = node.execute(model=MODEL, backend="auto", heads=loaded).result[0]
    direct = node.execute(model=MODEL, backend="auto", heads=table, schedule=schedule).result[0]
    out, same = sample(patched, size=SIZE, steps=3), sample(direct, size=SIZE, steps=3)
    run = run_summary(runs(patched)[0])
    expected = [float(table.head_densities(_tiling(table), i).mean()) for i in range(3)]
    return {
        "written": written,
        "listed": all(f"tests/{name}".replace("/", importlib.import_module("os").sep) in _HEADS.table_names()
                      for name in written),
        "same": loaded == table and torch.equal(out, same) and loaded_schedule == schedule,
        "deterministic": again.digest == table.digest,
        "dense": torch.equal(out, sample(MODEL, size=SIZE, steps=3)),
        "densities": [step["density"] for step in run["steps"]],
        "expected": expected,
        "reasons": [step["reasons"] for step in run["steps"]],
        "text": text,
        "image": list(image.shape),
        "range": [float(image.min()), float(image.max())],
    }  # fmt: skip


def case_a_patched_model_is_searched_as_it_was_before():
    patched = apply(MODEL, "0.00 fp8 x1 all 30% 30%")
    table, _, text, _ = searched(model=patched, stripes=0.0)
    return {"same": table.digest == searched(stripes=0.0)[0].digest, "said": "left aside" in text,
            "kept": len(runs(patched))}  # fmt: skip


def case_other_wans():
    """Image to video with its picture, and a reference picture's tokens in front."""
    found = {}
    image = {"concat_latent_image": torch.randn(1, 16, *SIZE), "concat_mask": torch.zeros(1, 4, *SIZE)}
    reference = {"reference_latents": [torch.randn(1, 16, 1, *SIZE[1:])]}
    for kind, extra in (("i2v", image), ("fun_ref", reference)):
        model = shifted(model_of(kind, layers=2), 3.0)
        table = searched(
            model=model, positive=conditioning(1, **extra), negative=conditioning(0, **extra), cfg=3.0, stripes=10.0
        )[0]
        patched = load_pack()["FPSAttentionApply"].execute(model=model, backend="auto", heads=table).result[0]
        out = sample(patched, size=SIZE, steps=3, extra=extra)
        (run,) = runs(patched)
        found[kind] = {
            "cost": table.made["mean_cost"],
            "prefix": max(step.prefix for step in run.steps.values()),
            "steps": [[step.sparse, step.dense, step.density] for step in run.steps.values()],
            "finite": bool(out.isfinite().all()),
        }
    return found


def case_a_batch_of_videos():
    table = searched(latent_image=latent(batch=2), cfg=3.0, branches="separate", stripes=0.0)[0]
    return {"cost": table.made["mean_cost"], "branches": table.branches}


def case_measured_costs():
    """On a CPU as well: what this machine takes, kept for the next search."""
    pattern_costs = importlib.import_module(f"{ROOT}.kernels.headsearch.cost")
    kept, asked = importlib.import_module(f"{ROOT}.nodes.search_run").pattern_costs, []

    def measured(patterns, tiling, **options):
        asked.append([options["kind"], options["call"].heads, options["call"].head_dim, options["call"].attention])
        plain = kept(patterns, tiling)
        # Twice what density says, but for full attention.
        relative = np.minimum(1.0, 2 * plain.relative)
        sources = ["measured"] * len(patterns)
        return pattern_costs.Costs(plain.patterns, relative, plain.densities, "measured", sources, relative)

    module = importlib.import_module(f"{ROOT}.nodes.search_run")
    module.pattern_costs = measured
    try:
        table = searched(cost="measured", stripes=0.0)[0]
    finally:
        module.pattern_costs = kept
    return {"asked": asked, "cost": table.made["mean_cost"], "density": table.made["mean_density"],
            "said": table.made["cost"]}  # fmt: skip


run_cases(globals())
