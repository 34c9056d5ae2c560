"""The training loop: ``fit`` takes a configuration and latents, and returns the trained model."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from .attention import StepState, attention_state
from .config import RunConfig
from .data.order import order
from .distributed import World, pick_device
from .failures import NonFiniteError
from .flow import Draw, draw, noisy, timestep, velocity_loss
from .journal import Journal, plot_losses
from .model import WanTransformer3DModel, autocast, keep_full_precision, starting_model
from .resume import capture, restore
from .sparse import SparseAttention
from .state import save_snapshot
from .stopping import StopFlag
from .validation import Validation, validate

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


@dataclass
class Training:
    """Everything that changes while a run goes on."""

    model: WanTransformer3DModel
    optimizer: torch.optim.AdamW
    ema: dict[str, torch.Tensor] | None
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    started: float = field(default_factory=time.monotonic)


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
) -> FitResult:
    """Train and return the result; ``train`` and ``val`` hold ``{'latent': (16, T, H, W), 'text': (L, D)}``.

    ``model`` (changed in place) replaces the one that the configuration names. ``resume`` is 'none', 'auto' (newest
    complete checkpoint, else from the start) or a checkpoint directory. ``empty_text`` (zeros if None) is what a
    dropped text becomes. ``progress`` is the bar's label, None for no bar. Two runs that differ in
    ``config.attention`` only see the same batches, noise and sigmas.
    Raises ConfigError, SnapshotError or ModelError (one sentence), NonFiniteError after repeated bad steps.
    """
    world, stop = world or World(), stop or StopFlag()
    device = pick_device(config.device, world)
    if config.threads:
        torch.set_num_threads(config.threads)
    model = (model if model is not None else starting_model(config.model, config.seed)).to(device).train()
    keep_full_precision(model)
    if config.activation_checkpointing != "none":
        model.enable_gradient_checkpointing()
    run = Training(model, _optimizer(config, model), _ema(config, model))
    restore(run, config, resume, world)
    folder = Path(config.output.dir) if world.is_main else None
    journal = Journal(folder, from_step=run.step, tensorboard=config.output.tensorboard)
    measure = Measure(config, val, run)
    attention, steps = config.attention.resolved(), config.optim.steps
    bar = tqdm(total=steps, initial=run.step, desc=progress, disable=progress is None or not world.is_main, unit="step")
    saved, stopped = run.step, False
    try:
        while run.step < steps and not stopped:
            record = train_step(config, run, train, attention, world, device, empty_text)
            if config.validation.every and run.step % config.validation.every == 0 and run.step < steps and len(val):
                record["validation"] = measure().loss
            journal.add(record)
            bar.update()
            bar.set_postfix_str(_status(record))
            if on_step is not None:
                on_step(run.step, record)
            stopped = world.any(stop.requested, device) and run.step < steps
            due = config.checkpoint.every and run.step % config.checkpoint.every == 0
            if due or stopped:
                saved = _save(config, run, world) or saved
        if saved != run.step and not stopped:
            _save(config, run, world)
        final = measure() if len(val) and not stopped and world.is_main else None
        if final is not None:
            journal.complete(validation=final.loss)
    finally:
        bar.close()
        journal.close()
    if folder is not None and journal.records:
        plot_losses({config.output.name: journal.records}, folder / "loss.png")
    if run.ema is not None and not stopped:
        run.model.load_state_dict(run.ema)
    seconds = time.monotonic() - run.started
    return FitResult(run.model, run.step, stopped, journal.records, final, seconds, run.skipped)


def train_step(
    config: RunConfig,
    run: Training,
    train: Sequence[dict[str, Any]],
    attention: SparseAttention,
    world: World,
    device: torch.device,
    empty_text: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Take one optimizer step and return its log record; a step that is not finite changes no weight.

    Raises NonFiniteError after ``optim.nonfinite_limit`` such steps in a row.
    """
    start, optim, flow = time.monotonic(), config.optim, config.flow.resolved()
    rate = optim.rate(run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    samples = batch_indices(config, run.step, len(train), world)
    total = torch.zeros((), dtype=torch.float64)
    draws: list[Draw] = []
    for first in range(0, len(samples), optim.batch):
        chosen = samples[first : first + optim.batch]
        micro = [
            draw(train[i], flow, config.seed, epoch, i, config.flow.text_dropout, empty_text) for epoch, i in chosen
        ]
        draws += micro
        total += backward(config, run.model, attention, micro, len(samples) * world.size, device)
    total = total.to(device=device, dtype=torch.float32)
    parameters = [parameter for parameter in run.model.parameters() if parameter.grad is not None]
    world.sum_([total, *(parameter.grad for parameter in parameters)])
    norm = clip_grad_norm_(parameters, optim.clip)
    loss, norm_value = float(total), float(norm)
    finite = math.isfinite(loss) and math.isfinite(norm_value)
    if finite:
        run.optimizer.step()
        _update_ema(config, run)
        run.skipped_in_a_row = 0
    run.optimizer.zero_grad(set_to_none=True)
    record = {
        "step": run.step,
        "loss": loss if finite else None,
        "norm": norm_value if finite else None,
        "lr": rate,
        "sigma": [round(d.sigma, 5) for d in draws],
        "phase": [attention.phase(d.sigma) for d in draws],
        "seconds": round(time.monotonic() - start, 4),
    }
    run.step += 1
    if not finite:
        _count_bad_step(config, run, record, samples)
    return record


def batch_indices(config: RunConfig, step: int, n: int, world: World) -> list[tuple[int, int]]:
    """Return this rank's (epoch, sample) pairs of a step; the union over ranks depends on the global batch only."""
    if n == 0:
        raise ValueError("the training part of the data is empty; give it more clips or frames")
    whole = config.optim.samples
    places = range(step * whole + world.rank, (step + 1) * whole, world.size)
    return [(place // n, int(order(config.seed, place // n, n)[place % n])) for place in places]


def backward(
    config: RunConfig,
    model: WanTransformer3DModel,
    attention: SparseAttention,
    draws: Sequence[Draw],
    whole: int,
    device: torch.device,
) -> torch.Tensor:
    """Add the gradient of these samples' loss over ``whole`` to the model and return that share of the loss.

    The samples run in groups of one phase and one shape: the plan of a forward is one, and every sample keeps the
    sigma that it has in a dense run.
    """
    groups: dict[Any, list[Draw]] = {}
    for one in draws:
        groups.setdefault((attention.phase(one.sigma), one.latent.shape, one.text.shape), []).append(one)
    state: StepState = attention_state(model)
    share = torch.zeros((), dtype=torch.float64)
    for group in groups.values():
        latent = torch.stack([one.latent for one in group]).to(device)
        noise = torch.stack([one.noise for one in group]).to(device)
        sigma = torch.tensor([one.sigma for one in group], dtype=torch.float32, device=device)
        text = torch.stack([one.text for one in group]).to(device)
        with state.step(attention, group[0].sigma, latent.shape):
            with autocast(device, config.dtype):
                out = model(noisy(latent, noise, sigma), timestep(sigma), text, return_dict=False)[0]
            loss = velocity_loss(out, latent, noise).sum() / whole
            loss.backward()
        share += loss.detach().double().cpu()
    return share


class Measure:
    """The validation of a run, as its configuration says."""

    def __init__(self, config: RunConfig, val: Sequence[dict[str, Any]], run: Training) -> None:
        self.config, self.val, self.run = config, val, run

    def __call__(self) -> Validation:
        """Return the validation loss of the weights as they would be exported, under the run's own attention."""
        section = self.config.validation
        with averaged(self.run):
            return validate(
                self.run.model,
                self.val,
                sigmas=section.sigmas,
                attention=self.config.attention.resolved(),
                seed=section.seed,
                batch=section.batch,
                dtype=self.config.dtype,
            )


@contextlib.contextmanager
def averaged(run: Training):
    """Run the body with the averaged weights in the model, if the run keeps an average."""
    if run.ema is None:
        yield
        return
    trained = {name: tensor.detach().clone() for name, tensor in run.model.state_dict().items()}
    run.model.load_state_dict(run.ema)
    try:
        yield
    finally:
        run.model.load_state_dict(trained)


def _optimizer(config: RunConfig, model: WanTransformer3DModel) -> torch.optim.AdamW:
    # Biases, norms and modulation are not decayed: decay is for matrices.
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and not n.endswith("scale_shift_table")]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or n.endswith("scale_shift_table")]
    optim = config.optim
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def _ema(config: RunConfig, model: WanTransformer3DModel) -> dict[str, torch.Tensor] | None:
    if config.ema is None:
        return None
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _update_ema(config: RunConfig, run: Training) -> None:
    if run.ema is not None:
        with torch.no_grad():
            for name, tensor in run.model.state_dict().items():
                run.ema[name].lerp_(tensor, 1 - config.ema.decay)


def _count_bad_step(config: RunConfig, run: Training, record: dict[str, Any], samples: list[tuple[int, int]]) -> None:
    run.skipped += 1
    run.skipped_in_a_row += 1
    where = f"step {record['step']} (samples {[i for _, i in samples]}, sigmas {record['sigma']})"
    _log.warning("loss or gradient is not finite at %s; the step is skipped", where)
    if run.skipped_in_a_row >= config.optim.nonfinite_limit:
        raise NonFiniteError(
            f"loss or gradient was not finite {run.skipped_in_a_row} steps in a row, last at {where}; "
            "lower optim.lr or look at these samples"
        )


def _save(config: RunConfig, run: Training, world: World) -> int | None:
    """Return the step that is now on disk, None if it could not be written; the same on every rank."""
    written = False
    if world.is_main:
        path = save_snapshot(Path(config.checkpoint.dir), capture(run, config, world), config.checkpoint.keep)
        written = path is not None
    return run.step if world.any(written, next(run.model.parameters()).device) else None


def _status(record: dict[str, Any]) -> str:
    loss = "skipped" if record["loss"] is None else f"{record['loss']:.4f}"
    held_out = f" held-out {record['validation']:.4f}" if "validation" in record else ""
    return f"loss {loss}{held_out}"
