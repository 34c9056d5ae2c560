"""What every script that runs inside the host shares: the pack through the host's own loader, models, sampling.

A script defines functions ``case_*`` that return something JSON can hold; ``run_cases`` prints one line with all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import traceback
from typing import Any

PACK = os.environ["FPS_PACK"]
MARK = "FPS-RESULT "


def _boot() -> None:
    sys.argv = ["host", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    torch.set_num_threads(1)


_boot()

import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from fps_tiny import tiny_wan  # noqa: E402

import nodes  # noqa: E402

_HOOK = "optimized_attention_override"


def load_pack() -> dict[str, Any]:
    """Load the pack as the server does and return its node classes by id."""
    if "FPSAttentionApply" not in nodes.NODE_CLASS_MAPPINGS:
        assert asyncio.run(nodes.load_custom_node(PACK, module_parent="custom_nodes"))
    return {key: cls for key, cls in nodes.NODE_CLASS_MAPPINGS.items() if key.startswith("FPSAttention")}


def pack_module(name: str) -> Any:
    """Return a module of the loaded pack, for example ``kernels.plan``."""
    root = load_pack()["FPSAttentionApply"].__module__.rsplit(".nodes.", 1)[0]
    return sys.modules[f"{root}.{name}"]


def model_of(kind: str = "t2v", **options: int) -> Any:
    """Return a tiny Wan MODEL with random weights."""
    model = comfy.sd.load_diffusion_model_state_dict(tiny_wan(kind, **options))
    assert model is not None
    return model


def apply(model: Any, schedule: str | None = None, backend: str = "auto") -> Any:
    """Return ``model`` patched by the node."""
    return load_pack()["FPSAttentionApply"].execute(model=model, backend=backend, schedule=schedule).result[0]


def conditioning(seed: int = 0, tokens: int = 512, **extra: Any) -> list:
    """Return CONDITIONING of zeros, or of noise for a seed."""
    if seed:
        context = torch.randn(1, tokens, 4096, generator=torch.Generator().manual_seed(seed))
    else:
        context = torch.zeros(1, tokens, 4096)
    return [[context, dict(extra)]]


def sample(
    model: Any,
    *,
    size: tuple[int, int, int] = (3, 12, 16),
    steps: int = 2,
    cfg: float = 1.0,
    sampler: str = "euler",
    batch: int = 1,
    channels: int = 16,
    extra: dict | None = None,
    latent: torch.Tensor | None = None,
    tokens: int = 512,
    **stage: Any,
) -> torch.Tensor:
    """Return the sampled latent ``(batch, channels, *size)``; ``size`` counts latent frames, rows and columns."""
    if latent is None:
        latent = torch.zeros(batch, channels, *size)
    noise = comfy.sample.prepare_noise(latent, 7)
    extra = extra or {}
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "simple", conditioning(1, tokens, **extra), conditioning(0, tokens, **extra),
        latent, disable_pbar=True, **stage,
    )  # fmt: skip


def shifted(model: Any, shift: float = 8.0) -> Any:
    """Return ``model`` with the host's own sigma shift node applied."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    return ModelSamplingSD3().patch(model, shift)[0]


def runs(model: Any) -> list:
    """Return the recorded runs of a patched model."""
    return list(model.get_attachment("fpsattention").recorder.runs)


def run_summary(run: Any) -> dict:
    """Return a run as JSON: its steps from the highest sigma down, and its notes."""
    return {
        "steps": [
            {
                "sigma": s.sigma, "index": s.index, "phase": s.phase, "attention": s.attention, "density": s.density,
                "planned": s.planned_density, "backend": s.backend, "sparse": s.sparse, "dense": s.dense,
                "evaluations": s.evaluations, "grid": list(s.grid), "prefix": s.prefix, "suffix": s.suffix,
                "reasons": s.reasons, "seconds": s.seconds, "skipped": s.skipped,
            }
            for s in sorted(run.steps.values(), key=lambda s: -s.sigma)
        ],
        "notes": run.notes,
        "finished": run.finished,
        "sigmas": run.sample_sigmas,
    }  # fmt: skip


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the relative L2 distance of ``a`` from ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def counting_override(model: Any) -> tuple[Any, list]:
    """Return a clone of ``model`` with another node's override, and the list that it appends each call's shapes to."""
    calls: list = []

    def override(func, q, k, v, *args, **kwargs):
        calls.append((tuple(q.shape), tuple(k.shape)))
        return func(q, k, v, *args, **kwargs)

    m = model.clone()
    options = m.model_options.setdefault("transformer_options", {})
    previous = options.get(_HOOK)
    assert previous is None
    options[_HOOK] = override
    return m, calls


def run_cases(scope: dict[str, Any]) -> None:
    """Run every ``case_*`` of ``scope`` and print one JSON line: result by name, or the traceback as ``error``."""
    logging.getLogger().setLevel(logging.WARNING)
    results = {}
    for name, function in scope.items():
        if name.startswith("case_") and callable(function):
            try:
                with torch.inference_mode():
                    results[name[5:]] = function()
            except BaseException:
                results[name[5:]] = {"error": traceback.format_exc()}
    print(MARK + json.dumps(results), flush=True)
