"""One optimizer step: the passes of this process, forward and backward, the gradient agreed upon, the record of it."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .attention import NEGATIVE, PROMPT, attention_state
from .config import RunConfig
from .distributed import World
from .failures import NonFiniteError
from .flops import WITH_BACKWARD, forward_flops
from .flow import Draw, draw, noisy, timestep, velocity_loss
from .model import WanTransformer3DModel, autocast, model_shape
from .parallel.shard import is_sharded, local_of
from .passes import Pass, Place, deal, step_places
from .ramp import Ramp
from .sparse import SparseAttention, latent_grid
from .talora import routes_now

if TYPE_CHECKING:
    from .ema import Ema
    from .loss_weight import DenoisingFactor
    from .plateau import Plateau
    from .teacher import Teacher

_log = logging.getLogger(__name__)
BLOCK_NORMS_EVERY = 10  # steps; each costs one exchange of a number per block
ROUTES_EVERY = 10  # steps


@dataclass
class Training:
    """Everything that changes while a run goes on, and what it goes on with."""

    config: RunConfig
    world: World
    device: torch.device
    model: WanTransformer3DModel
    optimizer: torch.optim.Optimizer
    attention: SparseAttention
    ramp: Ramp
    ema: Ema | None = None
    plateau: Plateau | None = None
    teacher: Teacher | None = None
    empty_text: Tensor | None = None
    loss_weight: DenoisingFactor | None = None
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    started: float = field(default_factory=time.monotonic)

    def attention_at(self, step: int, latent_shape: Sequence[int]) -> SparseAttention:
        """Return what attention does at a step for latents (..., T, H, W): the run's own, or in a ramp less of it."""
        return self.ramp.at(self.attention, step, latent_grid(latent_shape))


def plan_step(run: Training, step: int, data: Sequence[Any]) -> tuple[list[Place], list[Pass]]:
    """Return all samples of a step, and the passes that this process makes of them."""
    places = step_places(run.config, step, data, run.attention)

    def cost(place: Place) -> float:
        return _work(run, place, _density(run, step, place))

    dealt = deal(places, run.config.optim.batch, run.world.data_size, cost)
    return places, dealt[run.world.data_rank]


def train_step(run: Training, places: list[Place], passes: list[Pass], samples: Sequence[dict]) -> dict[str, Any]:
    """Take one optimizer step and return its log record; a step that is not finite changes no weight.

    ``samples`` are those of ``passes``, in order. Raises NonFiniteError after ``optim.nonfinite_limit`` such steps in
    a row; the weights are then those of the last good step, on every process.
    """
    start, config, world = time.monotonic(), run.config, run.world
    rate = config.optim.rate(run.step) * (run.plateau.factor if run.plateau is not None else 1.0)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    # Per sample: the loss, without its weight, the flow-matching part of it, and the density that was decided online.
    found = torch.zeros(3, len(places), dtype=torch.float64)
    waiting = iter(samples)
    for one in passes:
        draws = [
            draw(next(waiting), config.flow.resolved(), config.seed, place.epoch, place.index,
                 config.flow.text_dropout, run.empty_text, place.part)
            for place in one.places
        ]  # fmt: skip
        losses = forward_backward(run, draws, len(places), counts=one.counts)
        if one.counts:
            mine = [place.place for place in one.places]
            if world.sequence_rank == 0:
                found[:2, mine] = losses
            # Processes that share a sample have heads of their own.
            online = attention_state(run.model).online_density
            found[2, mine] = (float("nan") if online is None else online) / world.sequence_size
    found = found.float().to(run.device)
    world.sum_([found])
    per_sample, online = found[:2].cpu().double(), found[2].tolist()
    total, flow = (float(row.mean()) for row in per_sample)
    parameters = [parameter for parameter in run.model.parameters() if parameter.grad is not None]
    norms = _block_norms(run) if run.step % BLOCK_NORMS_EVERY == 0 else None
    norm = float(_full(clip_grad_norm_(parameters, config.optim.clip)))
    weights = torch.tensor([1.0 if run.loss_weight is None else run.loss_weight(place.sigma) for place in places])
    finite = math.isfinite(total) and math.isfinite(norm)
    if finite:
        run.optimizer.step()
        if run.ema is not None:
            run.ema.update()
        run.skipped_in_a_row = 0
    run.optimizer.zero_grad(set_to_none=True)
    record: dict[str, Any] = {
        "step": run.step,
        "loss": total if finite else None,
        "norm": norm if finite else None,
        "lr": rate,
        "samples": [[place.epoch, place.index] for place in places],
        "sigma": [round(place.sigma, 5) for place in places],
        "phase": [place.phase for place in places],
        "losses": [round(value, 6) for value in per_sample[0].tolist()] if finite else None,
        **_account(run, places, online),
        "memory": peak_memory(run.device),
        "skipped": run.skipped + (not finite),
        "seconds": round(time.monotonic() - start, 4),
    }
    if run.teacher is not None and finite:
        record["flow_loss"] = flow
    if run.loss_weight is not None and finite:
        record["weighted_loss"] = float((per_sample[0] * weights).mean())
    if config.talora is not None and run.step % ROUTES_EVERY == 0:
        record["routes"] = routes_now(run.model)
    if norms is not None and finite:
        record["block_norms"] = norms
    run.step += 1
    if not finite:
        _count_bad_step(run, record)
    return record


def forward_backward(run: Training, draws: Sequence[Draw], whole: int, *, counts: bool = True) -> Tensor:
    """Add the gradient of these samples' loss over ``whole`` to the model.

    The samples have one phase, band and size; those without their text take a head table's patterns of the negative
    prompt, which is what they are trained for. Returns (2, samples): the loss of each, without the run's weighting, and
    its flow-matching part. With ``counts`` False the gradient is zero.
    """
    config, device = run.config, run.device
    latent, noise = _stack([one.latent for one in draws], device), _stack([one.noise for one in draws], device)
    sigma = torch.tensor([one.sigma for one in draws], dtype=torch.float32, device=device)
    inputs = model_inputs(
        noisy(latent, noise, sigma), sigma, [one.text for one in draws],
        _stack([one.condition for one in draws], device), _stack([one.image for one in draws], device),
    )  # fmt: skip
    at = draws[0].sigma
    target = run.teacher.velocity(inputs, at, latent.shape) if run.teacher is not None else None
    branches = [NEGATIVE if one.dropped else PROMPT for one in draws]
    with attention_state(run.model).step(run.attention_at(run.step, latent.shape), at, latent.shape, branches):
        with autocast(device, config.dtype):
            out = run.model(*inputs, return_dict=False)[0]
        flow = velocity_loss(out, latent, noise)
        losses = flow
        if target is not None:
            share = config.loss.teacher
            losses = (1 - share) * flow + share * (out.float() - target).square().flatten(1).mean(1)
        # Shards' gradients are averaged over the processes; what is wanted is their sum.
        scale = float(counts) * (run.world.size if is_sharded(run.model) else 1) / whole
        weighted = losses
        if run.loss_weight is not None:
            weighted = losses * torch.tensor([run.loss_weight(one.sigma) for one in draws], device=device)
        (weighted.sum() * scale).backward()
    return torch.stack([losses.detach(), flow.detach()]).double().cpu()


def model_inputs(
    x: Tensor, sigma: Tensor, texts: Sequence[Tensor], condition: Tensor | None = None, image: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the transformer's arguments for noisy latents (B, 16, T, H, W).

    ``condition`` (B, 20, T, H, W) and ``image`` (B, tokens, 1280) are what image-to-video models see besides. A text
    of one token stands for any number of equal ones.
    """
    longest = max(len(text) for text in texts)
    text = torch.stack([text.expand(longest, -1) if len(text) == 1 else text for text in texts]).to(x.device)
    if condition is not None:
        x = torch.cat([x, condition.to(x.dtype)], 1)
    inputs = (x, timestep(sigma), text)
    return inputs if image is None else (*inputs, image)


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes of this process: what torch took of the GPU, or the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _stack(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor | None:
    return None if tensors[0] is None else torch.stack([x.float() for x in tensors]).to(device)


def _density(run: Training, step: int, place: Place) -> float | None:
    """Return the density of a sample's attention at a step, of both branches as often as texts are dropped."""
    attention, dropped = run.attention_at(step, place.bucket), run.config.flow.text_dropout
    return attention.density(latent_grid(place.bucket), place.sigma, dropped)


def _work(run: Training, place: Place, density: float | None) -> float:
    """Return the FLOPs that a sample takes; what is decided online counts as dense where nobody knows it."""
    tokens = latent_grid(place.bucket).video
    return WITH_BACKWARD * forward_flops(model_shape(run.model), tokens, 1.0 if density is None else density)


def _account(run: Training, places: Sequence[Place], online: Sequence[float]) -> dict[str, Any]:
    """Return density, FLOPs and tokens of a step; ``online`` has what was decided in it, NaN where nothing was."""
    densities = [_density(run, run.step, place) for place in places]
    told = [None if math.isnan(now) else now for now in online]
    densities = [now if before is None else before for before, now in zip(densities, told, strict=True)]
    return {
        "density": None if None in densities else sum(densities) / len(densities),
        "flops": sum(_work(run, place, density) for place, density in zip(places, densities, strict=True)),
        "tokens": sum(latent_grid(place.bucket).video for place in places),
    }


def _block_norms(run: Training) -> list[float]:
    """Return the gradient norm of every block, over all processes."""
    squares = []
    for block in run.model.blocks:
        grads = [local_of(p.grad).float() for p in block.parameters() if p.grad is not None]
        squares.append(sum((g.square().sum().to(run.device) for g in grads), torch.zeros((), device=run.device)))
    total = torch.stack(squares)
    if is_sharded(run.model):
        run.world.sum_([total])
        mesh = run.world.mesh
        total /= mesh.size(0) if mesh.ndim == 2 else 1  # copies have been counted once each
    return [round(float(value), 6) for value in total.sqrt()]


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _count_bad_step(run: Training, record: dict[str, Any]) -> None:
    run.skipped += 1
    run.skipped_in_a_row += 1
    samples = [index for _, index in record["samples"]]
    where = f"step {record['step']} (samples {samples}, sigmas {record['sigma']})"
    _log.warning("loss or gradient is not finite at %s; the step is skipped", where)
    if run.skipped_in_a_row >= run.config.optim.nonfinite_limit:
        raise NonFiniteError(
            f"loss or gradient was not finite {run.skipped_in_a_row} steps in a row, last at {where}; "
            "lower optim.lr or look at these samples"
        )
