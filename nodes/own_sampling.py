"""Nodes that sample by themselves: KSampler's run on a clone of the model, and how another node that skips it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.profiling.errors import ProfileError
from .model_call import step_index
from .profile_checks import skips
from .profile_meter import Meter

# The host's own name (comfy.patcher_extension.WrappersMP); a host test holds it equal.
PREDICT_NOISE = "predict_noise"
WATCH = "fpsattention_watch"
REPLACED = (
    "the model's self-attention could not be reached: another node replaced the model's own forward; connect the MODEL "
    "as it is before that node."
)


@dataclass(frozen=True)
class Job:
    """What is sampled, as KSampler has it."""

    positive: Any
    negative: Any
    latent: dict
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


class OwnSampling:
    """Samples on clones of ``base`` as KSampler does, with the progress, previews and cancelling of ``meter``; steps,
    sampler and scheduler are those of ``job``."""

    def __init__(self, base: Any, job: Job, meter: Meter):
        import comfy.samplers

        self.base, self.job, self.meter = base, job, meter
        self.image = latent_of(base, job.latent)
        sampler = comfy.samplers.KSampler(
            base, job.steps, base.load_device, job.sampler_name, job.scheduler, 1.0, base.model_options
        )
        self.sigmas = [float(sigma) for sigma in sampler.sigmas]
        self._sampled = False

    @property
    def step_sigmas(self) -> list[float]:
        """The sigma at which each step starts."""
        return self.sigmas[:-1]

    def forget(self) -> None:
        """Drop the model, wherever this is held: also the frames of an error hold the functions that ran in them, with
        all that these close over."""
        self.base = None

    def watch(self, m: Any, live: Callable[[], bool], computed: Callable[[], int]) -> None:
        """Raise ProfileError as soon as a prediction of ``m`` leaves ``computed`` as it was although it was ``live``:
        another node skipped the model."""

        def watch(executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            before = computed()
            out = executor(x, timestep, *args, **kwargs)
            if live() and computed() == before:
                where = f" ({step_index(self.sigmas, float(timestep.flatten()[0]))}, for example)"
                raise skips("another node", where) if before or self._sampled else ProfileError(REPLACED)
            return out

        m.add_wrapper_with_key(PREDICT_NOISE, WATCH, watch)
        # Around all others: they too may skip what is inside of them.
        wrappers = m.wrappers[PREDICT_NOISE]
        m.wrappers[PREDICT_NOISE] = {WATCH: wrappers.pop(WATCH), **wrappers}

    def sample(self, m: Any, live: Callable[[], bool], job: Job | None = None) -> torch.Tensor:
        """Return the final latent of ``job``; steps count for the meter while they are ``live``."""
        import comfy.sample

        image = self.image if job is None else latent_of(self.base, job.latent)
        job = self.job if job is None else job
        noise = comfy.sample.prepare_noise(image, job.seed, job.latent.get("batch_index"))

        def callback(step: int, denoised: Any, x: Any, total: int) -> None:
            if live():
                self.meter.step(denoised)

        out = comfy.sample.sample(
            m, noise, job.steps, job.cfg, job.sampler_name, job.scheduler, job.positive, job.negative, image,
            noise_mask=job.latent.get("noise_mask"), callback=callback, disable_pbar=True, seed=job.seed,
        )  # fmt: skip
        self._sampled = True
        return out


def latent_of(base: Any, latent: dict) -> torch.Tensor:
    """Return the latent as the sampler gets it: an empty one with the channels of the model."""
    import comfy.sample

    function = comfy.sample.fix_empty_latent_channels
    # Newer hosts take the latent's scale as a third argument.
    takes = function.__code__.co_argcount > 2
    return function(base, latent["samples"], *((latent.get("downscale_ratio_spacial"),) if takes else ()))
