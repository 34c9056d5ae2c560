"""Plans that are ready before they are needed: built when a run first shows its grid, not in the middle of it.

Without a head table the layers of a phase share one plan, which ``Plans`` itself keeps. With one every layer has its
own, and looking them all up takes longer than a model call may: the run keeps their list, with the lists of key tiles
that they share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..kernels.grid import Tiling, choose_tiling
from ..kernels.plan import Plans
from .head_use import head_densities
from .override import HeadChoice
from .record import Run
from .sentence import one_line


@dataclass(frozen=True)
class Ready:
    """The plans of a model call of ``run`` with ``count`` layers: main blocks, then control blocks. ``branches`` says
    per sample which prompt it is of, one number counts for all."""

    run: Run
    plans: Plans
    count: int
    device: Any
    branches: tuple[int, ...]

    def place(self, sigma: float) -> tuple[int, int]:
        """Return phase and band of the head table at ``sigma``: two that share them run the same plans."""
        return self.plans.schedule.at(sigma)[0], self.band(sigma)

    def band(self, sigma: float) -> int:
        """Return the head table's band at ``sigma``, 0 where none is used."""
        plans = self.plans
        uses = plans.table is not None and plans.schedule.at(sigma)[1].uses_heads
        return plans.table.band_at(sigma) if uses else 0

    def build_ahead(self, sigma: float) -> None:
        """Build the plans of every phase and band that the run will reach, once per grid; say once what became of a
        head table that was made for another grid."""
        if self.plans in self.run.built:
            return
        self.run.built[self.plans] = None
        seen = set()
        for value in (sigma, *self.run.sample_sigmas[:-1]):
            # A sigma that is no number has no phase.
            if value == value and (place := self.place(value)) not in seen:
                seen.add(place)
                self.layers(value)
        if self.plans.table is not None:
            note = self.plans.table.note_for(_tiling(self.plans))
            if note is not None:
                self.run.note(one_line(note))

    def layers(self, sigma: float) -> tuple[list, HeadChoice | None]:
        """Return the plan of every layer (None: dense), and what a head table chose, where one is used."""
        _, phase = self.plans.schedule.at(sigma)
        if not phase.uses_heads:
            return self.plans.layers(sigma, self.count, self.device), None
        key = (self.plans, *self.place(sigma), self.count, self.device, self.branches)
        found = self.run.built.get(key)
        if found is None:
            found = self.plans.layers(sigma, self.count, self.device, self.branches), self._choice(sigma)
            self.run.built[key] = found
        return found

    def _choice(self, sigma: float) -> HeadChoice:
        plans, band = self.plans, self.band(sigma)
        each = head_densities(plans.table, _tiling(plans), band, self.branches).mean(1)
        return HeadChoice(plans.grid, band, self.branches, each.tolist())


def _tiling(plans: Plans) -> Tiling:
    return choose_tiling(plans.grid, plans.slots, plans.tile)
