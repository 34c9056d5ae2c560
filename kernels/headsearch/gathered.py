"""Evidence of a whole model: running means per step and layer, what each prompt showed, and one file for it all."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..grid import Tiling, TokenGrid
from ..patterns import Stripe
from ..whole_file import write_whole
from .classify import PromptDependence, concentrations, families, prompt_dependence, stripe_candidates
from .evidence import AREAS, MEASURED, Evidence, EvidenceError, running_mean

KIND = "fpsattention head evidence"
VERSION = 1
# Mass below 1e-7 of a row is nothing; powers have no such bounds.
WIDE = ("power", *AREAS)
# What numpy and zipfile raise for one byte that is another.
DAMAGES = (
    ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
EVIDENCE_STEPS = 3
MOST_STRIPES = 4


@dataclass
class Gathered:
    """Evidence by (step, layer), means over everything that was added, and per prompt what it takes to compare them.

    A step is named by its sigma. Memory grows with steps and layers, with prompts only by a few numbers per head.
    """

    means: dict[tuple[float, int], Evidence] = field(default_factory=dict)
    counts: dict[tuple[float, int], int] = field(default_factory=dict)
    # (concentrations (heads, 4), output share (heads,), how many) by (prompt, step, layer).
    prompts: dict[tuple[str, float, int], tuple[np.ndarray, np.ndarray, int]] = field(default_factory=dict)

    def add(self, prompt: str, step: float, layer: int, evidence: Evidence) -> None:
        """Take evidence of one prompt (the mean of its samples) at one step and layer.

        Raises EvidenceError if it is of another grid, tiling or number of heads than what was added before.
        """
        evidence = evidence.mean()
        for other in list(self.means.values())[:1]:
            # Checked before anything is changed.
            running_mean(other, evidence, 0.0)
        key = (float(step), int(layer))
        count = self.counts[key] = self.counts.get(key, 0) + 1
        known = self.means.get(key)
        self.means[key] = evidence if known is None else running_mean(known, evidence, 1 / count)
        found, share = concentrations(evidence)[0], evidence.share[0]
        mine = (prompt, *key)
        before, before_share, seen = self.prompts.get(mine, (found, share, 0))
        weight = 1 / (seen + 1)
        self.prompts[mine] = (
            before + weight * (found - before),
            before_share + weight * (share - before_share),
            seen + 1,
        )

    @property
    def steps(self) -> list[float]:
        """Sigmas, from noise to video."""
        return sorted({step for step, _ in self.means}, reverse=True)

    @property
    def layers(self) -> list[int]:
        """Layers, ascending."""
        return sorted({layer for _, layer in self.means})

    def layer_means(self, step: float) -> list[Evidence]:
        """Return the evidence of every layer at one step."""
        return [self.means[key] for key in sorted(self.means) if key[0] == step]

    def classes(self, step: float) -> np.ndarray:
        """Return the families at one step, words ``(layers, heads)``."""
        return np.array([families(concentrations(e)[0], e.share[0]) for e in self.layer_means(step)])

    def dependence(self) -> PromptDependence:
        """Return whether patterns depend on the prompt; raises EvidenceError where a prompt lacks a step or a layer."""
        names = sorted({prompt for prompt, _, _ in self.prompts})
        wanted = [(prompt, step, layer) for prompt in names for step in self.steps for layer in self.layers]
        for key in wanted:
            if key not in self.prompts:
                raise EvidenceError(
                    f"prompt '{key[0][:40]}' has no evidence at sigma {key[1]:g}, layer {key[2]}; "
                    "measure the same steps and layers of every prompt."
                )
        shape = (len(names), len(self.steps), len(self.layers))
        found = [self.prompts[key] for key in wanted]
        features = np.array([each for each, _, _ in found])
        words = np.array([families(each, share) for each, share, _ in found])
        return prompt_dependence(features.reshape(*shape, *features.shape[1:]), words.reshape(*shape, -1))

    def save(self, path: str | Path) -> Path:
        """Write everything to one npz file, whole or not at all, and return its path; mass is kept in half precision
        (a thousandth of it, far below what sampling rows leaves open). Raises EvidenceError."""
        if not self.means:
            raise EvidenceError("there is no evidence to save; measure some first.")
        keys, asked = sorted(self.means), sorted(self.prompts)
        first = self.means[keys[0]]
        facts = {
            "kind": KIND,
            "version": VERSION,
            "grid": [*first.grid.shape, first.grid.prefix, first.grid.suffix],
            "pieces": list(first.pieces),
            "keys": [[*key, self.counts[key]] for key in keys],
            "prompts": [[*key, self.prompts[key][2]] for key in asked],
        }
        arrays = {
            name: np.stack([getattr(self.means[key], name) for key in keys]).astype(
                np.float32 if name in WIDE else np.float16
            )
            for name in (*MEASURED, *AREAS)
        }
        arrays["found"] = np.stack([self.prompts[key][0] for key in asked])
        arrays["share"] = np.stack([self.prompts[key][1] for key in asked])
        data = io.BytesIO()
        np.savez_compressed(data, facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8), **arrays)
        path = Path(path)
        try:
            write_whole(path, data.getvalue())
        except OSError as error:
            raise EvidenceError(f"{path} cannot be written ({error.strerror or type(error).__name__}).") from None
        return path

    @staticmethod
    def load(path: str | Path) -> Gathered:
        """Return what ``save`` wrote; raises EvidenceError, one sentence that names the file, for anything else."""
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                return _read(json.loads(file["facts"].tobytes()), {name: file[name] for name in file.files})
        except FileNotFoundError:
            raise EvidenceError(f"there is no file {path}; check the path.") from None
        except EvidenceError as error:
            raise EvidenceError(f"{path.name}: {error}") from None
        except OSError as error:
            raise EvidenceError(f"{path.name} cannot be read ({error.strerror or 'it is no npz file'}).") from None
        except DAMAGES:
            raise EvidenceError(f"{path.name} is no head evidence or is damaged; measure it again.") from None


def evidence_steps(steps: int) -> set[int]:
    """Return which of a run's steps to look at: early, middle and late say how heads change along the trajectory."""
    return {round((steps - 1) * i / (EVIDENCE_STEPS - 1)) for i in range(EVIDENCE_STEPS)}


def stripes(gathered: Gathered, tiling: Tiling, share: float, most: int = MOST_STRIPES) -> list[Stripe]:
    """Return at most ``most`` stripes of ``share`` of the tiles that heads look at in any of the steps."""
    return stripe_candidates([gathered.means[key] for key in sorted(gathered.means)], tiling, share, most)


def evidence_facts(gathered: Gathered) -> dict[str, Any]:
    """Return what a table says about the evidence that it was made with."""
    words, counts = np.unique([gathered.classes(step) for step in gathered.steps], return_counts=True)
    clips = len({prompt for prompt, _, _ in gathered.prompts})
    said: dict[str, Any] = {
        "sigmas": [round(step, 6) for step in gathered.steps],
        "clips": clips,
        "families": {str(word): int(count) for word, count in zip(words, counts)},
    }
    if clips > 1 and next(iter(gathered.means.values())).heads * len(gathered.layers) > 1:
        found = gathered.dependence()
        said["prompts"] = {
            "variance": {part: round(value, 4) for part, value in found.variance.items()},
            "same_family": round(found.same, 4),
            "same_by_chance": round(found.same_by_chance, 4),
            "kappa": None if np.isnan(found.kappa) else round(found.kappa, 4),
        }
    return said


def _read(facts: dict, arrays: dict[str, np.ndarray]) -> Gathered:
    if facts["kind"] != KIND:
        raise EvidenceError("this is no head evidence; choose a file that the search of head patterns wrote.")
    if not isinstance(facts["version"], int) or facts["version"] > VERSION:
        raise EvidenceError(
            f"it is v{facts['version']} head evidence, this version reads v{VERSION}; update the node pack."
        )
    grid, pieces = TokenGrid(*facts["grid"]), tuple(facts["pieces"])
    if len(pieces) != 3 or any(not 1 <= n <= length for n, length in zip(pieces, grid.shape)):
        raise EvidenceError(f"its tiles {pieces} are none of its grid {grid.shape}; the file is damaged.")
    heads = arrays["entropy"].shape[2]
    rings, tiles = arrays["area"].shape[2], arrays["area_tiles"].shape[1]
    t, h, w = grid.shape
    many = len(facts["keys"])
    shapes = {
        "frames": (many, 1, heads, 2, t, t),
        "distance": (many, 1, heads, t, rings),
        "down": (many, 1, heads, h),
        "across": (many, 1, heads, w),
        "tiles": (many, 1, heads, 2, tiles),
        **dict.fromkeys(("entropy", "peak", "power"), (many, 1, heads)),
        "area": (many, t, rings),
        "area_down": (many, h),
        "area_across": (many, w),
        "area_tiles": (many, tiles),
        "found": (len(facts["prompts"]), heads, 4),
        "share": (len(facts["prompts"]), heads),
    }
    if any(arrays[name].shape != shape for name, shape in shapes.items()):
        raise EvidenceError("its arrays do not fit each other; the file is damaged, measure it again.")
    gathered = Gathered()
    for i, (step, layer, count) in enumerate(facts["keys"]):
        parts = {name: arrays[name][i].astype(np.float64) for name in (*MEASURED, *AREAS)}
        gathered.means[float(step), int(layer)] = Evidence(grid, pieces, **parts)
        gathered.counts[float(step), int(layer)] = int(count)
    for i, (prompt, step, layer, count) in enumerate(facts["prompts"]):
        key = (str(prompt), float(step), int(layer))
        gathered.prompts[key] = (arrays["found"][i], arrays["share"][i], int(count))
    return gathered
