"""The training loop: ``fit`` takes a configuration and latents, and returns the trained model."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from .assemble import assemble
from .config import ConfigError, RunConfig
from .data.loader import Loader
from .distributed import World, pick_device
from .failures import NonFiniteError
from .journal import Journal, status
from .model import WanTransformer3DModel
from .resume import Saver
from .step import Training, plan_step, train_step
from .stopping import StopFlag
from .validation import Validation, validate
from .watch.about import about_run
from .watch.report import write_report

if TYPE_CHECKING:
    from .watch.preview import Previewer

_log = logging.getLogger(__name__)


@dataclass
class FitResult:
    """What a run came to; ``model`` holds the averaged weights if the run keeps an average."""

    model: WanTransformer3DModel
    step: int
    stopped: bool
    records: list[dict[str, Any]]
    validation: Validation | None
    seconds: float
    skipped: int = 0
    saved: int | None = None
    """The step of the newest complete state on disk, None while there is none."""


def fit(
    config: RunConfig,
    train: Sequence[dict[str, Any]],
    val: Sequence[dict[str, Any]] = (),
    *,
    model: WanTransformer3DModel | None = None,
    resume: str = "none",
    empty_text: torch.Tensor | None = None,
    progress: str | None = "training",
    world: World | None = None,
    stop: StopFlag | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
    previewer: Previewer | None = None,
) -> FitResult:
    """Train and return the result; ``train`` and ``val`` hold ``{'latent': (16, T, H, W), 'text': (L, D)}``.

    Image-to-video samples also hold ``condition`` (20, T, H, W) and ``image`` (tokens, 1280). ``model`` (changed in
    place) replaces the one that the configuration names. ``resume`` is 'none', 'auto' (newest complete checkpoint,
    else from the start) or a checkpoint directory. ``empty_text`` (zeros if None) is what a dropped text becomes.
    ``progress`` is the bar's label, None for no bar. Two runs that differ in ``config.attention`` only see the same
    batches, noise and sigmas; so do two runs on different numbers of processes.
    Raises ConfigError, SnapshotError or ModelError (one sentence), NonFiniteError after repeated bad steps, when the
    state of the last good step has been saved.
    """
    world, stop = world or World(), stop or StopFlag()
    device = pick_device(config.device, world)
    if config.optim.decay == "plateau" and not len(val):
        raise ConfigError(
            "optim.decay is 'plateau', but no sample is held out that could tell when the loss stops falling; set "
            "data.holdout above 0, or optim.decay to 'constant' or 'cosine'"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    run = assemble(config, world, device, model, empty_text)
    saver = Saver(config, run, world, train.fingerprint() if hasattr(train, "fingerprint") else None)
    saver.restore(resume)
    folder = Path(config.output.dir) if world.is_main else None
    about = about_run(config, world, device, parameters=sum(p.numel() for p in run.model.parameters()))
    journal = Journal(folder, from_step=run.step, tensorboard=config.output.tensorboard, about=about)
    if previewer is not None:
        previewer.board = journal.board
    # One answer per step, for the loader's thread and for the step itself.
    plan = functools.lru_cache(maxsize=8)(lambda step: plan_step(run, step, train))
    loader = Loader(train, lambda step: [(place.epoch, place.index) for one in plan(step)[1] for place in one.places])
    bar = tqdm(
        total=config.optim.steps,
        initial=run.step,
        desc=progress,
        disable=progress is None or not world.is_main,
        unit="step",
    )
    stopped = False
    try:
        while run.step < config.optim.steps and not stopped:
            record = _one_step(run, plan, loader)
            if _due(config.validation.every, run) and len(val):
                record["validation"] = measure(run, val).loss
                if run.plateau is not None:
                    run.plateau.measured(record["validation"])
            journal.add(record)
            bar.update()
            bar.set_postfix_str(status(record))
            if on_step is not None:
                on_step(run.step, record)
            if previewer is not None and previewer.due(run.step):
                with averaged(run):
                    previewer.render(run.model, run.step)
            stopped = world.any(stop.requested) and run.step < config.optim.steps
            if stopped or _due(config.checkpoint.every, run):
                saver.save()
        if not stopped:
            saver.save()
        final = measure(run, val) if len(val) and not stopped else None
        if final is not None:
            journal.complete(validation=final.loss)
        _check_end(saver, final, run.step)
    except NonFiniteError:
        saver.save()
        raise
    finally:
        loader.close()
        saver.finish()
        bar.close()
        journal.close()
    if folder is not None and journal.records and config.output.report:
        _report(folder)
    if run.ema is not None and not stopped:
        run.ema.keep()
    seconds = time.monotonic() - run.started
    return FitResult(run.model, run.step, stopped, journal.records, final, seconds, run.skipped, saver.saved_step)


def _report(folder: Path) -> None:
    """Write the report; whatever keeps it from being drawn must not keep the trained weights from their file."""
    try:
        write_report(folder)
    except Exception as error:
        _log.warning("the report is not written: %s; python -m training.report %s tries again", error, folder)


def _one_step(run: Training, plan: Callable, loader: Loader) -> dict[str, Any]:
    places, passes = plan(run.step)
    start, waited = time.monotonic(), loader.waited
    samples = loader.get(run.step)
    record = train_step(run, places, passes, samples)
    record["data_seconds"] = round(loader.waited - waited, 5)
    record["seconds"] = round(time.monotonic() - start, 4)
    return record


def measure(run: Training, val: Sequence[dict[str, Any]]) -> Validation:
    """Return the held-out loss of the weights as they would be exported, under the run's own attention."""
    section = run.config.validation
    with averaged(run):
        return validate(
            run.model,
            val,
            sigmas=section.sigmas,
            attention=run.attention,
            seed=section.seed,
            batch=section.batch,
            dtype=run.config.dtype,
            world=run.world,
        )


def averaged(run: Training) -> contextlib.AbstractContextManager:
    """Return a context with the averaged weights in the model, if the run keeps an average."""
    return contextlib.nullcontext() if run.ema is None else run.ema.swapped()


def _check_end(saver: Saver, final: Validation | None, step: int) -> None:
    """Refuse to hand on what came out of a run when it is not finite: few steps may not reach nonfinite_limit."""
    what = saver.broken or (None if final is None or math.isfinite(final.loss) else "the held-out loss")
    if what is not None:
        raise NonFiniteError(
            f"{what} is not finite after step {step}, so nothing is exported; lower optim.lr, and look at the last "
            "steps in loss.jsonl"
        )


def _due(every: int, run: Training) -> bool:
    """Return True after every so many steps but the last, when everything is done once more anyway."""
    return bool(every) and run.step % every == 0 and run.step < run.config.optim.steps
