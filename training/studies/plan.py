"""What the study runs, in order: fine-tunes, measurements, sampled videos, quantization errors.

The schedules that are compared, and in which order, were fixed here before any of them was trained or sampled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..flow import shifted
from .sizes import Size

PARTS = ("quantization", "shapes", "rates", "losses", "core", "density", "direction", "videos", "steps")
SIGMAS = (0.98, 0.93, 0.85, 0.75, 0.6, 0.45, 0.3, 0.15)
# The middles of nine equal parts of the trajectory at shift 3, three to a phase of the schedules that are compared.
THIRDS = tuple(round(shifted((i + 0.5) / 9, 3.0), 6) for i in reversed(range(9)))
SHAPES = ("time 25", "time 25 tall", "time 25 flat", "cube 25")
SCHEDULES = ("sparse-dense-medium", "dense-medium-sparse")
# The best constant shape without training, then the paper's order, then dense first.
ORDERS = ("time 25 tall", *(f"{name} tall" for name in SCHEDULES))
DENSITIES = (50, 25, 15, 10, 5)
CORE = "time 15"


@dataclass(frozen=True)
class Arm:
    """A fine-tune of the base; ``window`` 'dense' is the control. Arms of one seed see the same batches and noise."""

    window: str
    steps: int
    rate: float
    seed: int = 0
    teacher: float = 0.0
    ramp: int = 0

    @property
    def key(self) -> str:
        """The arm in words."""
        extra = (f", teacher {self.teacher:g}" if self.teacher else "") + (f", ramp {self.ramp}" if self.ramp else "")
        return f"{self.window}, {self.steps} steps, lr {self.rate:g}, seed {self.seed}{extra}"

    @property
    def control(self) -> Arm:
        """The dense fine-tune of equal steps, rate and seed."""
        return Arm("dense", self.steps, self.rate, self.seed)


BASE = "base"


@dataclass(frozen=True)
class Measure:
    """The held-out loss of some weights (an arm, or the base as None) under a window, at fixed noise levels."""

    arm: Arm | None
    window: str
    sigmas: tuple[float, ...] = SIGMAS

    @property
    def key(self) -> str:
        """The measurement in words."""
        where = " by thirds" if self.sigmas == THIRDS else ""
        return f"loss of [{self.arm.key if self.arm else BASE}] used {self.window}{where}"


@dataclass(frozen=True)
class Train:
    """A fine-tune."""

    arm: Arm

    @property
    def key(self) -> str:
        """The fine-tune in words."""
        return f"train [{self.arm.key}]"


@dataclass(frozen=True)
class Videos:
    """PSNR of videos sampled by an arm under its own window against its control's, sampled densely, per seed."""

    arm: Arm
    count: int
    steps: int

    @property
    def key(self) -> str:
        """The videos in words."""
        return f"videos of [{self.arm.key}]"


@dataclass(frozen=True)
class Quantization:
    """Errors of attention's output on the base's own q, k and v, at one noise level."""

    sigma: float

    @property
    def key(self) -> str:
        """The measurement in words."""
        return f"quantization at sigma {self.sigma:g}"


Job = Train | Measure | Videos | Quantization


@dataclass(frozen=True)
class Comparison:
    """An arm with everything that it is compared with."""

    arm: Arm
    sigmas: tuple[float, ...] = SIGMAS

    @property
    def parts(self) -> dict[str, Measure]:
        """The measurements by letter: dense base, A (base used sparse), D and B (control), C (the arm)."""
        window, control = self.arm.window, self.arm.control
        return {
            "base": Measure(None, "dense", self.sigmas),
            "A": Measure(None, window, self.sigmas),
            "D": Measure(control, "dense", self.sigmas),
            "B": Measure(control, window, self.sigmas),
            "C": Measure(self.arm, window, self.sigmas),
        }

    @property
    def jobs(self) -> list[Job]:
        """Everything to run, in order."""
        return [Train(self.arm.control), Train(self.arm), *self.parts.values()]


def rates(size: Size) -> list[Comparison]:
    """Return short joint fine-tunes at several learning rates: why does fine-tuning fall short?"""
    return [Comparison(Arm(CORE, size.short_steps, rate)) for rate in size.rates]


def losses(size: Size) -> list[Comparison]:
    """Return flow matching, mixed and teacher losses, then a ramp of sparsity."""
    steps, rate = size.short_steps, size.rate
    ramp = Arm(CORE, steps, rate, ramp=steps * 2 // 5)
    return [Comparison(arm) for arm in (*(Arm(CORE, steps, rate, teacher=w) for w in (0.0, 0.5, 1.0)), ramp)]


def core(size: Size) -> list[Comparison]:
    """Return the joint fine-tune over three seeds, with the loss that the search found best."""
    return [Comparison(Arm(CORE, size.core_steps, size.rate, seed, size.core_teacher)) for seed in (0, 1, 2)]


def steps(size: Size) -> list[Comparison]:
    """Return flow matching alone with as many steps as the core, then the core's loss with twice its steps."""
    plain = [Comparison(Arm(CORE, size.core_steps, size.rate, seed)) for seed in (0, 1, 2)]
    return [*plain, Comparison(Arm(CORE, 2 * size.core_steps, size.rate, teacher=size.core_teacher))]


def density(size: Size) -> list[Comparison]:
    """Return shorter fine-tunes over densities, full-time windows first, then cubic ones."""
    names = [f"{shape} {share}" for shape in ("time", "cube") for share in DENSITIES]
    return [Comparison(Arm(name, size.curve_steps, size.rate)) for name in names]


def direction(size: Size) -> list[Comparison]:
    """Return the schedules of equal mean density, measured by thirds of the trajectory."""
    return [Comparison(Arm(name, size.curve_steps, size.rate), THIRDS) for name in ORDERS]


def videos(size: Size) -> list[Videos]:
    """Return the sampled videos of the same schedules."""
    return [Videos(one.arm, size.videos, size.sampling_steps) for one in direction(size)]


def quantization() -> list[Quantization]:
    """Return the noise levels at which quantization is looked at: those of validation and both ends."""
    return [Quantization(sigma) for sigma in (0.99, *SIGMAS[1:], 0.04)]


def jobs(size: Size, parts: Iterable[str] = PARTS) -> list[Job]:
    """Return the jobs of some parts, each once, in order."""
    found: dict[Job, None] = {}
    for part in parts:
        if part == "videos":
            found |= dict.fromkeys([Train(v.arm) for v in videos(size)] + [Train(v.arm.control) for v in videos(size)])
            found |= dict.fromkeys(videos(size))
        elif part == "quantization":
            found |= dict.fromkeys(quantization())
        elif part == "shapes":
            found |= dict.fromkeys(Measure(None, name, THIRDS) for name in ("dense", *SHAPES, *SCHEDULES, *ORDERS[1:]))
            found[Measure(None, "fp8 only")] = None
        else:
            comparisons = {
                "rates": rates, "losses": losses, "core": core, "density": density, "direction": direction,
                "steps": steps,
            }[part](size)  # fmt: skip
            found |= dict.fromkeys(job for one in comparisons for job in one.jobs)
    return list(found)


def settings_hash(job: Job, size: Size, shared: dict[str, Any]) -> str:
    """Return the name of a job's settings: two jobs of equal settings are one, and a changed window is a new one."""
    arm = getattr(job, "arm", None)
    names = {getattr(job, "window", None), arm.window if arm else None, CORE if isinstance(job, Quantization) else None}
    windows = {name: size.windows[name] for name in sorted(names & size.windows.keys())}
    samples = None if isinstance(job, Train) else size.validation
    settings = {"slots": size.slots, "tile": size.tile, "windows": windows, "samples": samples, **shared}
    text = json.dumps({"job": type(job).__name__, **asdict(job), "settings": settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
