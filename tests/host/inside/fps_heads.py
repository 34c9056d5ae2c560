"""Head tables on the host's own Wan: each head by its pattern, branches of guidance, and what the report says."""

from __future__ import annotations

import numpy as np
import torch
from fps_common import apply, load_pack, model_of, pack_module, relative, run_cases, run_summary, runs, sample, shifted

_TABLE, _GRID = pack_module("kernels.head_table"), pack_module("kernels.grid")
_SCHEDULE, _PARSE = pack_module("kernels.schedule").Schedule, pack_module("kernels.pattern_text").parse_pattern

# 3 x 12 x 16 = 576 tokens in tiles of 16; the tiny model has 3 layers of 2 heads.
SIZE, GRID, TILE, SLOTS = (3, 24, 32), _GRID.TokenGrid(3, 12, 16), (1, 4, 4), 16
LAYERS, HEADS = 3, 2
WORDS = ("full", "skip", "window 1 all all", "window all 40% 40% + first 1", "stripe 3x3x4 0-3,17")
MIXED = [[[0, 1], [2, 3], [4, 3]]]
MODEL = shifted(model_of())


def table_of(bands, untils=(0.0,), schedule="0.00 bf16 - heads", words=WORDS):
    made = tuple(_TABLE.Band(until, np.array(chosen, dtype=np.uint8)) for until, chosen in zip(untils, bands))
    return _TABLE.HeadTable(tuple(map(_PARSE, words)), made, GRID, TILE, SLOTS, _SCHEDULE.parse(schedule), "tiny")


def with_heads(table, schedule: str | None = None):
    node = load_pack()["FPSAttentionApply"]
    return node.execute(model=MODEL, backend="auto", schedule=schedule, heads=table).result[0]


def masked(table):
    """MODEL, each head of each layer and sample masked token by token and computed by PyTorch's own attention."""
    tiling = _GRID.choose_tiling(GRID, SLOTS, TILE)
    tile_of = np.empty(GRID.tokens, dtype=np.int64)
    for tile, row in enumerate(tiling.index):
        tile_of[row[row >= 0]] = tile
    masks = [torch.tensor(pattern.mask(tiling)[tile_of][:, tile_of]) for pattern in table.patterns]

    def override(func, q, k, v, heads, **kwargs):
        if q.shape != k.shape:
            return func(q, k, v, heads, **kwargs)
        options = kwargs["transformer_options"]
        chosen = table.bands[table.band_at(float(options["sigmas"][0]))].chosen[:, options["block_index"]]
        order = options["cond_or_uncond"]
        b, s, width = q.shape
        out = torch.empty_like(q).view(b, s, heads, -1)
        split = [x.view(b, s, heads, -1) for x in (q, k, v)]
        for i in range(b):
            branch = min(order[i * len(order) // b], len(chosen) - 1)
            for head in range(heads):
                one = [x[i, :, head][None, None] for x in split]
                mask = masks[chosen[branch, head]]
                if not mask.any():
                    out[i, :, head] = 0
                    continue
                attend = torch.nn.functional.scaled_dot_product_attention
                out[i, :, head] = attend(*one, attn_mask=mask)[0, 0]
        return out.view(b, s, width)

    m = MODEL.clone()
    m.model_options["transformer_options"] = {
        **m.model_options.get("transformer_options", {}),
        "optimized_attention_override": override,
    }
    return m


def compared(table, **options):
    patched = with_heads(table)
    out = sample(patched, size=SIZE, **options)
    return {
        "relative": relative(out, sample(masked(table), size=SIZE, **options)),
        "changed": relative(out, sample(MODEL, size=SIZE, **options)),
        "run": run_summary(runs(patched)[0]),
    }


def case_each_head_by_its_pattern():
    return compared(table_of([MIXED]))


def case_bands_at_their_sigmas():
    return compared(table_of([MIXED, [[[3, 3], [1, 2], [0, 0]]]], (0.9, 0.0)), steps=4)


TWO = table_of([[MIXED[0], [[3, 2], [4, 4], [2, 2]]]])


def case_branches_in_one_call():
    return compared(TWO, cfg=5.0)


def case_branches_in_two_calls():
    """Little memory: the host calls the model once per branch."""
    MODEL.model.memory_required = lambda *args, **kwargs: 1e30
    try:
        return compared(TWO, cfg=5.0)
    finally:
        del MODEL.model.memory_required


def case_two_videos_with_guidance():
    return compared(TWO, cfg=5.0, batch=2)


def case_all_full_is_dense():
    table = table_of([np.zeros((1, LAYERS, HEADS))])
    return torch.equal(sample(with_heads(table), size=SIZE), sample(MODEL, size=SIZE))


def case_one_window_is_that_window():
    """The tile of a table is not the default, so the window schedule stands in a table's place as well."""
    equal = {}
    for kind in ("bf16 -", "fp8 x1"):
        table = table_of([np.zeros((1, LAYERS, HEADS))], schedule=f"0.00 {kind} heads", words=("window all 40% 40%",))
        settings = pack_module("nodes.settings").Settings
        header = pack_module("kernels.checkpoint").Header(
            _SCHEDULE.parse(f"0.00 {kind} all 40% 40%"), slots=SLOTS, tile=TILE
        )
        window = pack_module("nodes.patch").apply_patch(MODEL, settings(header.schedule, "test", "auto", header))
        equal[kind] = torch.equal(sample(with_heads(table), size=SIZE), sample(window, size=SIZE))
    return equal


def case_report():
    """The report's densities, from its text, beside the table's own on this grid."""
    table = table_of([MIXED, [[[3, 3], [1, 2], [0, 0]]]], (0.9, 0.0))
    patched = with_heads(table)
    latent = sample(patched, size=SIZE, steps=4)
    out = load_pack()["FPSAttentionReport"].execute(latent={"samples": latent}, model=patched)
    _, text, image = out.result
    tiling = _GRID.choose_tiling(GRID, SLOTS, TILE)
    sigmas = [step.sigma for step in runs(patched)[0].steps.values()]
    exact = np.mean([table.head_densities(tiling, table.band_at(sigma))[0] for sigma in sigmas], 0)
    return {"text": text, "exact": (100 * exact).tolist(), "image": list(image.shape), "sigmas": sigmas}


def case_another_grid():
    patched = with_heads(table_of([MIXED]))
    out = sample(patched, size=(5, 20, 28))
    return {"finite": bool(out.isfinite().all()), "run": run_summary(runs(patched)[0])}


def _refused(function) -> str:
    try:
        function()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def case_refused():
    """Before anything is sampled."""
    model = model_of(layers=2)
    node = load_pack()["FPSAttentionApply"]
    return {
        "no table": _refused(lambda: apply(MODEL, "0.00 fp8 x1 heads")),
        "layers": _refused(lambda: node.execute(model=model, backend="auto", heads=table_of([MIXED]))),
        "no heads": _refused(lambda: node.execute(model=MODEL, backend="auto", heads="table.json")),
    }


def case_unused():
    patched = with_heads(table_of([MIXED]), "0.00 fp8 x1 all 40% 40%")
    sample(patched, size=SIZE)
    return run_summary(runs(patched)[0])["notes"]


def case_online():
    """What a selector chooses is read once the run is over, also where guidance calls the model twice."""
    found = {}
    for words in ("svg 0.3", "sta", "topk 0.2", "cdf 0.7"):
        patched = apply(MODEL, f"0.00 fp8 x1 {words}")
        out = sample(patched, size=SIZE, cfg=5.0)
        run = runs(patched)[0]
        text = load_pack()["FPSAttentionReport"].execute(latent={"samples": out}, model=patched).result[1]
        layers = {block: total / calls for step in run.steps.values() for block, (total, calls) in step.layers.items()}
        found[words] = {"finite": bool(out.isfinite().all()), "run": run_summary(run), "layers": layers, "text": text}
    return found


run_cases(globals())
