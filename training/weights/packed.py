"""An MSFP file as weights: what is packed comes dequantized, everything else as it is stored."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...kernels.checkpoint import HeaderError
from ...kernels.msfp import ops
from ...kernels.msfp.file import MsfpFile, read_msfp
from ...kernels.msfp.weights import TENSOR
from ..names import ModelError, WanShape, shape_of
from .files import Files
from .read import Weights


class PackedWeights(Weights):
    """The same as ``Weights`` for an MSFP file; ``msfp`` is what its header says."""

    naming, scaled = "msfp", False

    def __init__(self, files: Files) -> None:
        self.path, self.files, self.metadata = files.path, files.files, files.metadata
        if len(files.files) > 1:
            raise ModelError(f"{files.path}: holds several files, but an MSFP model is one; give the file's own path")
        try:
            self.msfp: MsfpFile = read_msfp(files.files[0])
        except HeaderError as error:
            raise ModelError(str(error)) from None
        self.shape: WanShape = shape_of(self.msfp.shapes(), str(files.path))

    @property
    def dtypes(self) -> dict[str, int]:
        """Return how many weights have which format, or dtype as safetensors calls it."""
        counts: dict[str, int] = {}
        kinds = [layer.weight.form.name for layer in self.msfp.layers.values()]
        for kind in kinds + [dtype for dtype, _ in self.msfp.plain.values()]:
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def read(self, name: str, rows: slice | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the tensor of diffusers' name ``name``, or those rows of its first dimension, on the CPU; packed ones
        dequantized, to float32 unless ``dtype`` is given."""
        original = self.original[name]
        if original in self.msfp.plain:
            tensor = self.msfp.tensor(original)
            tensor = tensor if rows is None else tensor[rows].clone()
            return tensor if dtype is None else tensor.to(dtype)
        try:
            weight = self.msfp.weight(original.removesuffix(".weight"))
        except HeaderError as error:
            raise ModelError(str(error)) from None
        if rows is not None:
            part = slice(None) if weight.format.granularity == TENSOR else rows
            zero = None if weight.zero is None else weight.zero[part]
            weight = replace(weight, codes=weight.codes[rows], scale=weight.scale[part], zero=zero)
        return ops.dequantize(weight, dtype or torch.float32)
