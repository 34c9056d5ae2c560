"""Doing a search: model, prompts, evidence, costs, passes, and what is written."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ...kernels.attention import resolve_backend
from ...kernels.checkpoint import Header, read_header
from ...kernels.checkpoint_copy import copy_with_header
from ...kernels.grid import Tiling, TokenGrid, choose_tiling
from ...kernels.head_table import HeadTable, write_head_table
from ...kernels.headsearch.cost import Call, Costs, pattern_costs
from ...kernels.headsearch.gathered import Gathered, evidence_facts, stripes
from ...kernels.headsearch.rule import FULL
from ...kernels.headsearch.search import HeadSearch
from ...kernels.schedule import Schedule
from ..data.text import ZEROS
from ..distributed import World, pick_device
from ..evaluation.request import EvaluationError, read_prompts, read_seeds, read_size, run_dtype
from ..evaluation.texts import encode_prompts
from ..files import fingerprint
from ..model import WanTransformer3DModel, for_inference, load_model
from ..names import HEAD_DIM, read_shape
from ..sparse import latent_grid
from ..stopping import StopFlag
from .cli import ASSETS, PUBLISHED, TINY
from .gather import gather
from .passes import run_passes
from .request import MOST_CLIPS, SearchError, first_steps_dense, make_request, read_schedule, settings_key
from .sensitivity import measure_weights
from .state import StateFile
from .trajectory import Clip, Sampler

TINY_SLOTS, SLOTS = 8, 64


def search_heads(args: argparse.Namespace, say: Callable[[str], None]) -> Iterator[str]:
    """Search as the arguments say, write the table, and yield what to tell of it, line by line. Raises SearchError and
    the usual errors before anything is sampled, as far as they can be known then."""
    usual = PUBLISHED if args.model else TINY
    path = Path(args.model or ASSETS / "wan2.1-tiny-t2v.safetensors").expanduser()
    out = _target(args.out)
    header, shape = _model_facts(path)
    _check_into(args.into, path)
    device = pick_device(args.device, World())
    schedule = read_schedule(args.schedule)
    sampler, clips_of = _sampling(args, usual, device)
    schedule = first_steps_dense(schedule, sampler.sigmas[:-1], _at_least(args, "dense_steps", 0))
    slots, tile = _tiles(args, header)
    grid = latent_grid(sampler.shape)
    tiling = choose_tiling(grid, slots, tile)
    _check(args, schedule, sampler, shape.layers, device)

    texts, negative, identity = encode_prompts(
        clips_of.prompts, args.negative, args.text_encoder, out.parent / "texts", device
    )
    sampler = replace(sampler, negative=negative)
    clips = [Clip(texts[i], seed) for i in range(len(clips_of.prompts)) for seed in clips_of.seeds]
    batches = [clips[i : i + args.together] for i in range(0, len(clips), args.together)]
    facts = {"model": fingerprint(path), "texts": identity, "prompts": clips_of.prompts, "seeds": clips_of.seeds,
             "negative": args.negative, "sampler": [sampler.shape, sampler.steps, sampler.shift, sampler.cfg],
             "dtype": sampler.dtype, "together": args.together, "slots": slots, "tile": tile, "backend": args.backend,
             "passes": _passes(args, args.budget), "cost": args.cost}  # fmt: skip
    state = StateFile(out, early=_early(args, facts))
    if args.restart:
        state.remove()
    state.check()
    model = for_inference(load_model(path), sampler.dtype, device)

    gathered = _gathered(args, model, sampler, clips, tiling)
    found = stripes(gathered, tiling, args.stripes) if gathered and args.stripes else []
    budget, args.budget = args.budget, None
    if budget and args.error is None:
        args.error = "output"
    request = make_request(args, schedule, sampler.sigmas[:-1], shape.layers, found)
    search = HeadSearch(request, grid, shape.layers, shape.heads, slots=slots, tile=tile, backend=args.backend)
    costs = _costs(args, search, schedule, sampler, device)
    search.costs = costs.relative
    calls = sum(request.schedule.at(sigma)[1].uses_heads for sigma in sampler.sigmas[:-1])
    calls *= (2 if sampler.cfg != 1.0 else 1) * (shape.layers - len(request.dense_layers))
    search.request = request = replace(request, budget=_budget(budget, costs, shape.heads, calls))
    if request.budget is not None and request.budget < costs.relative.min():
        least = f"{costs.relative.min():.1%} of full attention"
        raise SearchError(f"--budget {budget} cannot be met: the cheapest candidate takes {least}; give more")
    say(f"{len(search.candidates)} candidates on {_words(grid, tiling)}; {_costs_say(costs)}")
    passes = _passes(args, budget)
    # Every candidate once, full attention among them, and the chosen output: at most as much as full.
    runs = len(clips) * (float(search.densities.sum()) + (request.budget or 1.0))
    say(f"passes over {len(clips)} clips: {passes}; the attention of one takes about {runs:.0f} dense videos")

    state.key = settings_key(request, facts)
    began = state.read()
    if began is not None:
        search.costs = began[1]["costs"]  # measured times differ from one run to the next
        say(f"goes on with pass {began[0].number + 1}, batch {began[0].batch + 1}, step {began[0].step + 1}")
    start = time.monotonic()
    if request.error == "output" and began is None:
        search.weights = _weights(model, search, sampler, clips[0])
    _run(model, search, sampler, batches, passes, state, began[0] if began else None)
    made = {
        "rule": "budget" if budget else args.rule, "cost": costs.kind, "costs_from": _costs_say(costs),
        "clips": len(clips), "prompts": len(clips_of.prompts), "steps": sampler.steps, "shift": sampler.shift,
        "cfg": sampler.cfg, "passes": passes, "seconds": round(time.monotonic() - start, 1),
        "base_sha256": _hash(path),
    }  # fmt: skip
    if gathered is not None:
        made["evidence"] = evidence_facts(gathered)
    table = search.table(path.name, made)
    write_head_table(out, table)
    yield from _written(args, table, search, gathered, out, path, header, say)
    state.remove()


class _Clips:
    def __init__(self, args: argparse.Namespace) -> None:
        self.prompts = read_prompts(args.prompts, encoder=args.text_encoder != ZEROS)
        self.seeds = read_seeds(args.seeds)
        if len(self.prompts) * len(self.seeds) > MOST_CLIPS:
            raise SearchError(f"{len(self.prompts)} prompts with {len(self.seeds)} seeds each are too many; give fewer")


def _sampling(args: argparse.Namespace, usual: dict, device: torch.device) -> tuple[Sampler, _Clips]:
    chosen = {name: usual[name] if getattr(args, name) is None else getattr(args, name) for name in usual}
    try:
        frames, height, width = read_size(chosen["size"])
        clips = _Clips(args)
    except EvaluationError as error:
        raise SearchError(str(error)) from None
    for name in ("cfg", "shift"):
        if not 0 < chosen[name] < 1000:
            raise SearchError(f"--{name} is {chosen[name]:g}, it must lie above 0 and below 1000")
    if not 1 <= chosen["steps"] <= 1000:
        raise SearchError(f"--steps is {chosen['steps']}, it must be 1 to 1000")
    shape = (16, (frames - 1) // 4 + 1, height // 8, width // 8)
    dtype = run_dtype(args.dtype, device)
    return Sampler(shape, chosen["steps"], chosen["shift"], chosen["cfg"], None, dtype), clips


def _model_facts(path: Path):
    if not path.exists():
        raise SearchError(f"--model {path}: there is no such file; check the path")
    shape = read_shape(path)
    if shape.in_channels != 16:
        raise SearchError(
            f"--model {path}: is an image-to-video model ({shape.in_channels} channels), which needs a picture for "
            "every clip; search it with the node Search Head Patterns, or give a text-to-video model"
        )
    return (read_header(path) if path.is_file() else None), shape


def _check_into(text: str | None, model: Path) -> None:
    """Say what would keep the model from being written, before hours are spent on what goes into it."""
    if text is None:
        return
    if not model.is_file():
        raise SearchError(f"--into needs a model in one safetensors file, {model} is a folder; leave --into out")
    path = _target(text, "--into", "heads.safetensors")
    if path.exists() and path.samefile(model):
        raise SearchError(f"--into {text}: is the file that is read; name another one, and the model stays as it is")


def _tiles(args: argparse.Namespace, header: Header | None) -> tuple[int, tuple[int, int, int] | None]:
    if args.slots is not None:
        if not 2 <= args.slots <= 4096:
            raise SearchError(f"--slots is {args.slots}, a tile has 2 to 4096 tokens")
        return args.slots, None
    if header is not None:
        return header.slots, header.tile
    return (SLOTS if args.model else TINY_SLOTS), None


def _at_least(args: argparse.Namespace, name: str, low: int) -> int:
    value = getattr(args, name)
    if value < low:
        raise SearchError(f"--{name.replace('_', '-')} is {value}, it must be at least {low}")
    return value


def _check(args: argparse.Namespace, schedule: Schedule, sampler: Sampler, layers: int, device: torch.device) -> None:
    """Say what is wrong with the rest before the model is loaded."""
    for name, low in (("together", 1), ("evidence", 0)):
        _at_least(args, name, low)
    if args.passes is not None:
        _at_least(args, "passes", 1)
    if not 0 <= args.stripes <= 1:
        raise SearchError(f"--stripes is {args.stripes:g}, a share of the tiles from 0 to 1")
    if args.budget is not None:
        if args.lam is not None or args.epsilon is not None or args.rule == "paper":
            raise SearchError("--budget finds lambda itself; leave out --rule, --lambda and --epsilon")
        _read_budget(args.budget, args.cost)
    dtype = torch.float32 if sampler.dtype == "fp32" else torch.bfloat16
    for kind in sorted({phase.attention for phase in schedule.phases} - {"dense"}):
        resolve_backend(args.backend, device, dtype, HEAD_DIM, kind)
    budget, args.budget = args.budget, None
    make_request(args, schedule, sampler.sigmas[:-1], layers, [])
    args.budget = budget


def _read_budget(text: str, cost: str) -> tuple[float, bool]:
    """Return the number of a budget, and whether it is in seconds."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(%|s)?", text.strip())
    value = float(match[1]) if match else 0.0
    if match and match[2] == "s":
        if cost != "measured":
            raise SearchError(f"--budget {text} is a time, which needs --cost measured; or give a share such as 30%")
        if value > 0:
            return value, True
    share = value / 100 if match and match[2] == "%" else value
    if not match or not 0 < share <= 1:
        raise SearchError(
            f"--budget is '{text}'; write a share of full attention such as 0.3 or 30%, or seconds as 40s"
        )
    return share, False


def _budget(text: str | None, costs: Costs, heads: int, calls: int) -> float | None:
    if text is None:
        return None
    value, timed = _read_budget(text, costs.kind if costs.kind == "measured" else "measured")
    if not timed:
        return value
    if costs.ms is None:
        raise SearchError(f"--budget {text} is a time, and nothing could be measured here; give a share such as 30%")
    full, fixed = (calls * ms / 1e3 for ms in (heads * costs.ms[FULL], costs.fixed_ms))
    share = (value - fixed) / full
    if share <= 0:
        raise SearchError(
            f"--budget {text} is less than launching takes ({fixed:.3g} s); full attention is {full:.3g} s"
        )
    return min(1.0, share)


def _passes(args: argparse.Namespace, budget: str | None) -> int:
    return args.passes if args.passes is not None else 2 if budget else 1


def _costs(
    args: argparse.Namespace, search: HeadSearch, schedule: Schedule, sampler: Sampler, device: torch.device
) -> Costs:
    phase = next(phase for phase in schedule.phases if phase.uses_heads)
    dtype = torch.float32 if sampler.dtype == "fp32" else torch.bfloat16
    call = Call(device, search.heads, HEAD_DIM, phase.attention, phase.granularity, dtype, args.backend)
    if args.cost == "density":
        return pattern_costs(search.candidates, search.tiling, call=call)
    with tqdm(total=100, desc="costs", unit="%") as bar:
        return pattern_costs(
            search.candidates, search.tiling, kind=args.cost, call=call,
            tick=lambda share: bar.update(round(100 * share) - bar.n),
        )  # fmt: skip


def _gathered(
    args: argparse.Namespace, model: WanTransformer3DModel, sampler: Sampler, clips: Sequence[Clip], tiling: Tiling
) -> Gathered | None:
    looked = clips[: args.evidence]
    if not looked:
        return None
    with tqdm(total=len(looked) * sampler.steps, desc="evidence", unit="step") as bar:
        return gather(model, sampler, looked, tiling, bar.update)


def _weights(model: WanTransformer3DModel, search: HeadSearch, sampler: Sampler, clip: Clip) -> np.ndarray:
    with tqdm(total=sampler.steps, desc="layers", unit="step") as bar:
        return measure_weights(model, search, sampler, clip, bar.update)


def _run(model, search, sampler, batches, passes, state, began) -> None:
    done = 0
    if began is not None:
        done = (began.number * len(batches) + began.batch) * sampler.steps + began.step
    with tqdm(total=passes * len(batches) * sampler.steps, initial=done, desc="search", unit="step") as bar:

        def tick(place) -> None:
            bar.set_postfix_str(f"pass {place.number + 1}, batch {place.batch + 1} of {len(batches)}")
            bar.update()

        with StopFlag().on_signals() as stop:
            run_passes(model, search, sampler, batches, passes=passes, state=state, tick=tick, stop=stop)


def _hash(path: Path) -> str:
    return fingerprint(path) if path.is_file() else ""


def _words(grid: TokenGrid, tiling: Tiling) -> str:
    return f"{'x'.join(map(str, grid.shape))} tokens in {tiling.count} tiles of {'x'.join(map(str, tiling.tile))}"


def _written(
    args: argparse.Namespace,
    table: HeadTable,
    search: HeadSearch,
    gathered: Gathered | None,
    out: Path,
    path: Path,
    header: Header | None,
    say: Callable[[str], None],
) -> Iterator[str]:
    from .report import ABOUT, report_folder, write_report

    yield f"head table: {out}"
    made = table.made
    yield (
        f"mean density {made['mean_density']:.1%}, mean cost {made['mean_cost']:.1%}, "
        f"mean error {made['mean_error']:.4f} ({made['error']}), lambda {made['lambda']:.4g}, "
        f"epsilon {made['epsilon']:.4g}"
    )
    known = np.isfinite(search.errors).any(-1)
    if not known.all():
        chosen = search.choose()[0]
        share, cost = (values[chosen[known]].mean() for values in (search.densities, search.costs))
        yield f"of what was searched, without dense steps and layers: mean density {share:.1%}, mean cost {cost:.1%}"
    if made["mean_density"] == 1.0:
        yield _all_full(search)
    total = sum(table.counts().values())
    for words, count in table.counts().most_common():
        yield f"  {count / total:6.1%}  {words[:90]}"
    yield f"report: {report_folder(out)}"
    for written in write_report(table, search, gathered, out):
        yield f"  {written.name:22} {ABOUT[re.split('[-.]', written.name)[0]]}"
    if args.into:
        new = replace(header or Header(table.schedule), schedule=table.schedule, heads=table, slots=table.slots)
        new = replace(new, tile=table.tile, trainer=new.trainer or "training.search")
        say(f"writing {args.into} ...")
        yield f"model: {copy_with_header(path, Path(args.into).expanduser(), new)}"


def _all_full(search: HeadSearch) -> str:
    if search.costs[search.costs < 1.0].size < 2:
        return "every head stays full: hardly a candidate costs less than full attention here, at this size"
    return (
        f"every head stays full: no candidate loses little enough for what it saves (the cheapest costs "
        f"{search.costs.min():.1%}); give a --budget, or a larger --epsilon"
    )


def _early(args: argparse.Namespace, facts: dict) -> str:
    """Return the hash of what was asked: all that is known of a search before its evidence and costs are."""
    names = (
        "schedule", "candidates", "stripes", "bands", "branches", "dense_steps", "dense_layers", "rule", "lam",
        "epsilon", "budget", "error", "aggregate", "evidence",
    )  # fmt: skip
    asked = {**{name: getattr(args, name) for name in names}, **facts}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def _costs_say(costs: Costs) -> str:
    return costs.says() if costs.kind == "measured" or costs.notes else "cost is exact density"


def _target(text: str, option: str = "--out", usual: str = "heads.json") -> Path:
    path = Path(text).expanduser().absolute()
    if path.is_dir():
        raise SearchError(f"{option} {text}: is a folder; name a file in it, such as {path / usual}")
    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir():
        raise SearchError(f"{option} {text}: {nearest} is a file; name another folder")
    if not os.access(nearest, os.W_OK):
        raise SearchError(f"{option} {text}: {nearest} cannot be written to; name another folder")
    return path
