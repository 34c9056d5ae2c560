"""The profile's runs: the dense one with every prediction kept, and others that differ from it in some steps only.

Until a run's first sparse step its predictions are those of the dense run, so they are handed to the sampler instead of
being computed again. The sampler itself runs from the start in every run: its history and its random numbers are the
same, whatever sampler it is, and what comes out differs by the attention alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.checkpoint import Header
from ..kernels.profiling.errors import ProfileError
from ..kernels.profiling.study import Outcome
from ..kernels.profiling.trajectory import cut, only
from ..kernels.profiling.windows import Level
from ..kernels.schedule import Schedule
from .own_sampling import PREDICT_NOISE, Job, OwnSampling
from .patch import apply_patch
from .profile_meter import Meter
from .profile_probe import KEY, Probe
from .settings import KEY as PATCH_KEY
from .settings import Settings

SOURCE = "FPSAttention Profile"
# Where other nodes put functions that run with every guided prediction.
GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")


@dataclass(frozen=True)
class _Prediction:
    """One evaluation of the dense run: its sigma, a fingerprint of its input, and its output on the CPU."""

    sigma: float
    mark: tuple[float, float]
    output: torch.Tensor


class Sampling(OwnSampling):
    """Samples ``job`` on clones of ``base`` and compares with its dense run."""

    def __init__(self, base: Any, job: Job, header: Header | None, meter: Meter):
        super().__init__(base, job, meter)
        self.header = header
        self.reference: torch.Tensor | None = None
        why = _why_whole(base, job.sampler_name)
        # Whether predictions may be handed out again.
        self.replays = why is None
        whole = f"{why}, so every run was sampled from its first step, and there are no one-step losses."
        self.notes = [] if self.replays else [whole]
        self._record: list[_Prediction] = []

    @property
    def peak(self) -> float:
        """The range of the dense latent: the peak of its PSNR."""
        return float(self.reference.max() - self.reference.min())

    def dense(self, probe: Probe) -> torch.Tensor:
        """Sample densely with the probe, keep every prediction, and return the final latent."""
        m = self.base.clone()
        probe.install(m)
        self._record = []
        keep = self.replays

        def record(executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
            self.meter.check()
            out = executor(x, timestep, *args, **kwargs)
            if keep:
                # A copy: on a CPU the sampler may go on to write into what it got.
                kept = out.detach().to("cpu", copy=True)
                self._record.append(_Prediction(float(timestep.flatten()[0]), _mark(x), kept))
            return out

        m.add_wrapper_with_key(PREDICT_NOISE, KEY, record)
        self.watch(m, lambda: probe.plan is not None, lambda: probe.blocks)
        self.reference = self.sample(m, lambda: True).double()
        if not bool(self.reference.isfinite().all()) or self.peak == 0:
            raise ProfileError(
                "the dense run's latent is not finite, or constant, so nothing can be compared with it; check the "
                "model, cfg and the sampler first."
            )
        return self.reference

    def run(self, schedule: Schedule, what: str) -> Outcome:
        """Sample with ``schedule`` and return how far the final latent is from the dense one's."""
        self.meter.say(what)
        m, replay = self._patched(schedule)
        latent = self.sample(m, lambda: replay.live)
        self._check_ran(m)
        return Outcome(float((latent.double() - self.reference).square().mean()), replay.loss)

    def one_step(self, step: int, level: Level) -> float | None:
        """Return the relative error of the model's output when ``step`` alone runs at ``level``, from the dense run's
        input; None where it cannot be told. Costs one step: the rest is the dense run's."""
        segments = cut(self.step_sigmas, len(self.step_sigmas))
        index = next((i for i, segment in enumerate(segments) if segment.first == step), None)
        if index is None or not self._record:
            return None
        self.meter.say(f"one-step loss of step {step}")
        m, replay = self._patched(only(segments, index, level), once=True)
        self.sample(m, lambda: replay.live)
        self._check_ran(m)
        return replay.loss

    def forget(self) -> None:
        """Drop the model and what was kept of the dense run."""
        super().forget()
        self._record.clear()
        self.reference = None

    def _patched(self, schedule: Schedule, once: bool = False) -> tuple[Any, _Replay]:
        m = apply_patch(self.base, Settings(schedule, SOURCE, "auto", self.header))
        replay = _Replay(self._record, schedule, self.meter, once)
        m.add_wrapper_with_key(PREDICT_NOISE, KEY, lambda executor, *args, **kw: replay(executor, *args, **kw))
        recorder = m.get_attachment(PATCH_KEY).recorder
        self.watch(m, lambda: replay.live, lambda: _model_calls(recorder))
        return m, replay

    def _check_ran(self, m: Any) -> None:
        """Raise ProfileError if what should have been sparse was not."""
        runs = m.get_attachment(PATCH_KEY).recorder.runs
        for step in runs[-1].steps.values() if runs else ():
            if step.attention == "dense" or not step.reasons:
                continue
            reason = next(iter(step.reasons))
            if not step.sparse:
                raise ProfileError(f"the model's self-attention stays dense, so there is nothing to profile: {reason}.")
            note = f"part of the attention stayed dense while profiling: {reason}."
            if note not in self.notes:
                self.notes.append(note)


class _Replay:
    """Stands in for the model until its first sparse step; with ``once``, after it as well.

    ``loss`` is the relative error of the first prediction that was computed, in units of the model's output.
    """

    def __init__(self, record: list[_Prediction], schedule: Schedule, meter: Meter, once: bool):
        self.record, self.schedule, self.meter, self.once = record, schedule, meter, once
        self.live = False
        self.loss: float | None = None
        self._calls = 0
        self._before = bool(record)

    def __call__(self, executor: Any, x: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        self.meter.check()
        index, self._calls = self._calls, self._calls + 1
        known = self.record[index] if index < len(self.record) else None
        sigma = float(timestep.flatten()[0])
        if self._before:
            same = known is not None and known.sigma == sigma and known.mark == _mark(x)
            if same and self.schedule.at(sigma)[1].attention == "dense":
                self.live = False
                return known.output.to(x.device, copy=True)
            self._before = False
            self.live = True
            out = executor(x, timestep, *args, **kwargs)
            if same:
                self.loss = _output_error(out, known.output.to(x.device), x)
            return out
        if self.once and known is not None:
            self.live = False
            return known.output.to(x.device, copy=True)
        self.live = True
        return executor(x, timestep, *args, **kwargs)


def _why_whole(base: Any, sampler: str) -> str | None:
    """Why a guided prediction is not all that a step leaves behind, or None. Nodes further outside see each of them,
    also those that are handed out again."""
    if "cfg_pp" in sampler:
        return "this sampler also reads the prediction without guidance"
    if any(base.model_options.get(name) for name in GUIDANCE):
        return "another node takes part in guidance and may remember earlier steps"
    return None


def _model_calls(recorder: Any) -> int:
    return sum(step.evaluations for run in recorder.runs for step in run.steps.values())


def _output_error(out: torch.Tensor, dense: torch.Tensor, x: torch.Tensor) -> float | None:
    """The error of a denoised prediction over what the model adds to x: both are the model's output times sigma."""
    size = float((x.double() - dense.double()).norm())
    error = float((out.double() - dense.double()).norm()) / size if size > 0 else math.inf
    return error if math.isfinite(error) else None


def _mark(x: torch.Tensor) -> tuple[float, float]:
    """A fingerprint that differs as soon as one number does, but for bad luck."""
    wide = x.detach().double()
    return float(wide.sum()), float(wide.square().sum())
