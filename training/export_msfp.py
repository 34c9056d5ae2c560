"""What an MSFP model's training exports: the hub of a timestep-aware LoRA, or the MSFP file with trained weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.checkpoint import Header
from ..kernels.msfp.file import MsfpFile, write_msfp
from ..kernels.msfp.weights import quantize_weight
from ..kernels.timestep_lora import write_timestep_lora
from .config import RunConfig
from .names import ModelError
from .router import Router, fold
from .weights import open_weights

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_FORM = ("version", "layers", "fingerprint")


def write_hub(
    path: str | Path,
    config: RunConfig,
    hubs: Mapping[str, tuple[Tensor, Tensor]],
    router: Router,
    base: MsfpFile | None,
    header: Header | None,
) -> None:
    """Write a run's hub with the route that its router takes; ``base`` is the MSFP file that it was trained on."""
    fingerprint = "" if base is None else base.fingerprint
    write_timestep_lora(path, hubs, fold(router), config.talora.scale, base=fingerprint, header=header)


def write_trained(
    path: str | Path,
    file: MsfpFile,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: str,
    header: Header | None,
    step: int,
) -> None:
    """Write a model's whole (original name, tensor) pairs as an MSFP file: layers, formats and scales are those of
    ``file``, which the training started from; ``dtype`` ('bf16', 'fp32') is that of what is not packed."""

    def parts():
        for name, tensor in tensors:
            layer = name.removesuffix(".weight")
            if layer == name or layer not in file.layers:
                yield name, tensor.to(DTYPES[dtype])
                continue
            scale, zero = file.scales(layer)
            yield layer, quantize_weight(tensor.float(), file.layers[layer].weight, scale, zero)

    # Other codes are another model: what was trained on the one does not fit the other.
    trained = hashlib.sha256(f"{file.fingerprint} {header} {step}".encode())
    write_msfp(
        path, file.layers, file.rows, {name: (DTYPES[dtype], shape) for name, (_, shape) in file.plain.items()},
        parts(), scale_dtype=_scale_dtype(file), fingerprint=trained.hexdigest()[:16], header=header,
        facts={key: value for key, value in file.facts.items() if key not in _FORM} | {"trained_steps": str(step)},
    )  # fmt: skip


def base_file(config: RunConfig) -> MsfpFile | None:
    """Return the MSFP file that a run starts from, None if it starts from something else; raises ModelError."""
    if config.model.path is None:
        return None
    try:
        return open_weights(config.model.path).msfp
    except ModelError as error:
        raise ModelError(f"the export needs the model that the run started from: {error}") from None


def _scale_dtype(file: MsfpFile) -> torch.dtype:
    return next((file.scales(name)[0].dtype for name in file.layers), torch.float32)
