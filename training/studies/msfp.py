"""The study of MSFP on the small base: the paper's ablation (arXiv 2505.21591, table of components), and what unsigned
formats with a zero point gain on activations.

Every arm is one step more: e2m1 signed after training ('plain'); all formats, unsigned ones where inputs are asymmetric
('msfp'); a fine-tune of one LoRA per layer ('lora'); of a hub with a router ('talora'); the same with the
denoising-factor loss ('dfa'). All fine-tunes see the same batches and learn the full-precision model's velocity. They
are judged by the flow-matching loss on held-out clips and by the PSNR of sampled videos against the full-precision
model's from the same noise. A seed means other calibration clips and another fine-tune.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels.msfp.formats import BITS
from ..config import RunConfig
from ..evaluation.metrics import psnr
from ..loop import fit
from ..lora import linear_layers
from ..loss_weight import DenoisingFactor
from ..model import WanTransformer3DModel, for_inference, load_model
from ..quantize.cli import quantize_arguments
from ..quantize.layers import OBSERVED, kind_of, quantized_layers
from ..quantize.samples import watched
from ..quantize.search_input import search_input
from ..quantize.work import quantize
from ..sample import sample, to_frames
from ..vae import decode, load_vae
from ..validation import validate
from .answers import Answers
from .work import Deadline, OutOfTimeError, device_of, evenly

PLAIN, MSFP, LORA, TALORA, DFA = ARMS = ("plain", "msfp", "lora", "talora", "dfa")
TABLES = {"w4a4": "static", "w4": "none"}
SEEDS = (0, 1, 2)
# Of the fine-tunes. The hub's LoRAs together see as many samples as the single one.
STEPS, RATE, RANK, HUB = 200, 5e-3, 8, 2
HELD_OUT, VIDEOS, SAMPLING_STEPS = 6, 8, 18
CALIBRATION = {"size": "192x128x29", "steps": 12, "cfg": 1.0, "shift": 3.0}
SYNTHETIC_NUMBERS = 1 << 16


class MsfpStudy:
    """The study's base and data, with a cache of one JSON file per question."""

    def __init__(
        self,
        config: RunConfig,
        base: Path,
        train: Sequence[dict[str, Any]],
        held_out: Sequence[dict[str, Any]],
        cache: Path,
        shared: dict[str, Any],
        stop: Deadline,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.base, self.train, self.cache = config, base, train, cache
        self.held_out, self.stop, self.say = evenly(held_out, HELD_OUT), stop, say
        self.ask = Answers(cache, shared, stop, say).ask
        self.shape, self.text = tuple(train[0]["latent"].shape), train[0]["text"]

    def quantized(self, table: str, method: str, seed: int) -> Path:
        """Return the file of a quantization after training, made by the command that users call."""
        path = self.cache / f"{table}-{method}-{seed}.safetensors"
        if not path.is_file():
            arguments = quantize_arguments(
                "--model", str(self.base), "--out", str(path), "--inputs", TABLES[table], "--method", method,
                "--seeds", f"{2 * seed}-{2 * seed + 1}", "--no-plots",
                *(part for key, value in CALIBRATION.items() for part in (f"--{key}", str(value))),
            )  # fmt: skip
            for _ in quantize(arguments, self.say):
                pass
        return path

    def arm(self, table: str, name: str, seed: int) -> dict[str, Any]:
        """Return loss, loss per sigma and PSNR per video of an arm."""

        def work() -> dict[str, Any]:
            file = self.quantized(table, "signed" if name == PLAIN else "msfp", seed)
            if name in (PLAIN, MSFP):
                return self.judged(load_model(file))
            result = self._fine_tuned(file, table, name, seed)
            losses = [record["loss"] for record in result.records]
            return {**self.judged(result.model), "losses": [round(loss, 5) for loss in losses], "step": result.step}

        settings = {"table": table, "arm": name, "seed": seed}
        if name not in (PLAIN, MSFP):
            settings |= {"steps": STEPS, "rate": RATE, "rank": RANK, "hub": HUB}
        return self.ask("arm", settings, work)

    def full(self) -> dict[str, Any]:
        """Return the same of the full-precision base, whose videos are the reference."""
        return self.ask("full", {}, lambda: self.judged(load_model(self.base), videos=False))

    def _fine_tuned(self, file: Path, table: str, name: str, seed: int):
        config, folder = self.config, self.cache / f"{table}-{name}-{seed}"
        change = {
            "seed": 1000 + seed,
            "model": {"path": str(file)},
            "talora": {"rank": RANK, "hub": 1 if name == LORA else HUB},
            "loss": {
                "teacher": 1.0, "teacher_path": str(self.base),
                "weighting": "denoising-factor" if name == DFA else "none",
            },
            "optim": {
                **config.optim.model_dump(mode="json"), "steps": STEPS, "lr": RATE, "warmup": 10, "decay": "cosine",
                "final": 0.1,
            },
            "flow": {**config.flow.model_dump(mode="json"), "stratified": True},
            "validation": {**config.validation.model_dump(mode="json"), "every": 0},
            "checkpoint": {"dir": str(folder / "checkpoints"), "every": 80, "keep": 1, "background": False},
            "output": {"dir": str(folder), "name": name, "dtype": "fp32", "report": False},
        }  # fmt: skip
        run = RunConfig.model_validate({**config.model_dump(mode="json"), **change})
        result = fit(run, self.train, resume="auto", progress=None, stop=self.stop)
        if result.stopped:
            raise OutOfTimeError
        shutil.rmtree(folder, ignore_errors=True)
        return result

    def judged(self, model: WanTransformer3DModel, *, videos: bool = True) -> dict[str, Any]:
        """Return the held-out loss of a model, and its videos' PSNR against the base's."""
        section = self.config.validation
        model = for_inference(model, self.config.dtype, device_of(self.config))
        found = validate(
            model, self.held_out, sigmas=section.sigmas, seed=section.seed, batch=section.batch,
            dtype=self.config.dtype,
        )  # fmt: skip
        factor = DenoisingFactor(self.config.flow.resolved())
        weights = {sigma: factor(sigma) for sigma in found.per_sigma}
        answer = {
            "loss": found.loss,
            "weighted": sum(weights[s] * loss for s, loss in found.per_sigma.items()) / sum(weights.values()),
            "per_sigma": {f"{sigma:g}": loss for sigma, loss in found.per_sigma.items()},
        }
        if videos:
            pairs = zip(self._videos(model), self.reference, strict=True)
            answer["psnr"] = [round(psnr(mine, theirs), 4) for mine, theirs in pairs]
        return answer

    @cached_property
    def reference(self) -> list[Tensor]:
        """The base's videos, uint8 frames."""
        return self._videos(for_inference(load_model(self.base), self.config.dtype, device_of(self.config)))

    def _videos(self, model: WanTransformer3DModel) -> list[Tensor]:
        vae, frames = load_vae(self.config.vae.path).to(device_of(self.config)), []
        for first in range(0, VIDEOS, 4):
            seeds = range(100 + first, 100 + min(VIDEOS, first + 4))
            latents, _ = sample(
                model, shape=self.shape, seeds=seeds, text=self.text, steps=SAMPLING_STEPS,
                shift=self.config.flow.shift, dtype=self.config.dtype,
            )  # fmt: skip
            frames += [to_frames(video) for video in decode(vae, latents)]
        return frames

    def activations(self) -> list[dict[str, Any]]:
        """Return errors of signed and unsigned formats on the base's inputs of every kind, and on synthetic ones."""
        return self.ask("activations", {"numbers": SYNTHETIC_NUMBERS}, self._activations)

    def _activations(self) -> list[dict[str, Any]]:
        model = for_inference(load_model(self.base), self.config.dtype, device_of(self.config))
        layers = {name: layer for name, (_, layer) in linear_layers(model).items()}
        wanted = [*OBSERVED, *quantized_layers(layers, len(model.blocks))]
        with watched({name: layers[name] for name in wanted}, 32) as found:
            sample(
                model, shape=self.shape, seeds=(0, 1), text=self.text, steps=CALIBRATION["steps"],
                shift=CALIBRATION["shift"], dtype=self.config.dtype,
            )  # fmt: skip
        rows = []
        for bits in BITS:
            for name in wanted:
                rows.append({"input": name, "kind": kind_of(name), **_signs(found[name].tokens, bits)})
            for name, values in synthetic().items():
                rows.append({"input": name, "kind": "synthetic", **_signs(values[:, None], bits)})
        return rows


def synthetic() -> dict[str, Tensor]:
    """Return activations that are known: of normal numbers with deviation 1 and 3, through SiLU, GELU or nothing."""
    found = {}
    for deviation in (1.0, 3.0):
        x = deviation * torch.randn(SYNTHETIC_NUMBERS, generator=torch.Generator().manual_seed(0))
        found[f"SiLU, deviation {deviation:g}"] = functional.silu(x)
        found[f"GELU (tanh), deviation {deviation:g}"] = functional.gelu(x, approximate="tanh")
        found[f"normal, deviation {deviation:g}"] = x
    return found


def _signs(tokens: Tensor, bits: int) -> dict[str, Any]:
    """Return the errors that a search finds, and what it chooses."""
    choice = search_input(tokens, bits)
    return {
        "bits": bits,
        "asymmetry": choice.asymmetry,
        "signed": choice.signed,
        "unsigned": choice.unsigned,
        "int": choice.integer,
        "chosen": None if choice.quantizer is None else choice.quantizer.form.name,
        "text": "always 0" if choice.quantizer is None else choice.quantizer.text,
    }


def run_msfp(study: MsfpStudy, facts: dict[str, Any]) -> dict[str, Any]:
    """Return everything that the report needs. Raises OutOfTimeError."""
    return {
        "conditions": facts,
        "activations": study.activations(),
        "full": study.full(),
        "arms": [
            {"table": table, "arm": name, "seed": seed, **study.arm(table, name, seed)}
            for seed in SEEDS
            for table in TABLES
            for name in ARMS
        ],
    }
