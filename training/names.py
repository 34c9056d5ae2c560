"""The original (ComfyUI) tensor names of a Wan transformer, their shapes, and the way to diffusers' names and back.

ComfyUI recognizes Wan by the original names, diffusers uses its own. The map is diffusers' own converter, probed with
one number per name, so that nothing of it is repeated here and it can be inverted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..kernels.checkpoint import HeaderError, read_header, read_metadata

if TYPE_CHECKING:
    from .config import ModelSection

PREFIX = "model.diffusion_model."
HEAD_DIM = 128

# A tensor whose name starts so belongs to a Wan variant that this trainer does not train.
VARIANTS = {
    "img_emb.": "an image-to-video model (I2V, Fun InP or first-last-frame)",
    "vace_patch_embedding": "a VACE model",
    "control_adapter.": "a camera-control model",
    "casual_audio_encoder.": "a speech-to-video model (S2V)",
    "audio_proj.": "a HuMo model",
    "face_adapter.": "an Animate model",
    "patch_embedding_pose": "a SCAIL model",
    "ref_conv.": "a reference-image (Fun control) model",
}


class ModelError(ValueError):
    """A weights file that the trainer cannot use; the message is one sentence."""


@dataclass(frozen=True)
class WanShape:
    """The numbers that make a Wan text-to-video transformer."""

    dim: int
    ffn_dim: int
    layers: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256

    @property
    def heads(self) -> int:
        """Attention heads; Wan's are always 128 wide."""
        return self.dim // HEAD_DIM

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return every original tensor name with its shape, in the order of the published files."""
        d, f = self.dim, self.ffn_dim

        def linear(name: str, out: int, inp: int) -> dict[str, tuple[int, ...]]:
            return {f"{name}.weight": (out, inp), f"{name}.bias": (out,)}

        shapes: dict[str, tuple[int, ...]] = {
            "patch_embedding.weight": (d, self.in_channels, 1, 2, 2),
            "patch_embedding.bias": (d,),
            **linear("text_embedding.0", d, self.text_dim),
            **linear("text_embedding.2", d, d),
            **linear("time_embedding.0", d, self.freq_dim),
            **linear("time_embedding.2", d, d),
            **linear("time_projection.1", 6 * d, d),
        }
        for i in range(self.layers):
            block = f"blocks.{i}"
            shapes[f"{block}.modulation"] = (1, 6, d)
            for kind in ("self_attn", "cross_attn"):
                for part in ("q", "k", "v", "o"):
                    shapes |= linear(f"{block}.{kind}.{part}", d, d)
                shapes |= {f"{block}.{kind}.norm_q.weight": (d,), f"{block}.{kind}.norm_k.weight": (d,)}
            shapes |= {f"{block}.norm3.weight": (d,), f"{block}.norm3.bias": (d,)}
            shapes |= linear(f"{block}.ffn.0", f, d) | linear(f"{block}.ffn.2", d, f)
        shapes["head.modulation"] = (1, 2, d)
        return shapes | linear("head.head", 4 * self.out_channels, d)

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(math.prod(shape) for shape in self.tensors().values())


def strip_prefix(names: Iterable[str]) -> dict[str, str]:
    """Return {name in the file: original name}; ComfyUI's prefix is removed where it stands."""
    return {name: name.removeprefix(PREFIX) for name in names}


def shape_of(tensors: Mapping[str, tuple[int, ...]], source: str) -> WanShape:
    """Return the model's shape, read from {original name: tensor shape}.

    Raises ModelError with one sentence when the file is not a Wan text-to-video transformer that can be trained.
    """
    if "head.modulation" not in tensors:
        if "scale_shift_table" in tensors and any(".attn1." in name for name in tensors):
            raise ModelError(f"{source}: has diffusers' tensor names; give the single file with the original Wan names")
        raise ModelError(f"{source}: is not a Wan transformer (it has no tensor head.modulation)")
    for start, what in VARIANTS.items():
        if any(name.startswith(start) for name in tensors):
            raise ModelError(f"{source}: is {what}; this release trains text-to-video models only")
    try:
        patch = tensors["patch_embedding.weight"]
        shape = WanShape(
            dim=tensors["head.modulation"][-1],
            ffn_dim=tensors["blocks.0.ffn.0.weight"][0],
            layers=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
            in_channels=patch[1],
            out_channels=tensors["head.head.weight"][0] // 4,
            text_dim=tensors["text_embedding.0.weight"][1],
            freq_dim=tensors["time_embedding.0.weight"][1],
        )
    except KeyError as error:
        raise ModelError(f"{source}: lacks the tensor {error.args[0]}; the file is incomplete") from None
    if shape.dim % HEAD_DIM:
        raise ModelError(f"{source}: has dim {shape.dim}, which is not a multiple of Wan's head dimension {HEAD_DIM}")
    if shape.in_channels != 16 or shape.out_channels != 16:
        raise ModelError(
            f"{source}: takes {shape.in_channels} and gives {shape.out_channels} latent channels; "
            "this release trains 16-channel Wan2.1 text-to-video models only"
        )
    expected = shape.tensors()
    for name, want in expected.items():
        if name not in tensors:
            raise ModelError(f"{source}: lacks the tensor {name}; the file is incomplete")
        if tuple(tensors[name]) != want:
            raise ModelError(f"{source}: tensor {name} has shape {tuple(tensors[name])}, expected {want}")
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise ModelError(
            f"{source}: has {len(extra)} tensors that no Wan2.1 text-to-video model has, first {extra[0]} "
            "(a scaled FP8 file or another variant); give the full-precision file"
        )
    return shape


def read_shape(path: str | Path) -> WanShape:
    """Return the model's shape from the file's header alone; raises ModelError with one sentence."""
    try:
        _, tensors = read_metadata(path)
        read_header(path)  # a damaged or newer header is refused here, not carried on
    except HeaderError as error:
        raise ModelError(str(error)) from None
    names = strip_prefix(tensors)
    return shape_of({names[name]: tuple(spec[1]) for name, spec in tensors.items()}, str(path))


def planned_shape(section: ModelSection) -> WanShape:
    """Return the shape of the model that ``[model]`` names, without loading weights; raises ModelError."""
    if section.init == "random":
        return WanShape(section.dim, section.ffn_dim, section.layers, text_dim=section.text_dim)
    return read_shape(section.path)


def to_diffusers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with diffusers' names for original ones, by diffusers' own converter."""
    from .torchvision_guard import hide_broken_torchvision

    hide_broken_torchvision()
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    return convert_wan_transformer_to_diffusers(dict(tensors))  # it empties what it is given


def original_names(shape: WanShape) -> dict[str, str]:
    """Return {diffusers' name: original name} for every tensor of a model of this shape."""
    import torch

    names = list(shape.tensors())
    probe = to_diffusers({name: torch.tensor(float(i)) for i, name in enumerate(names)})
    return {new: names[int(value)] for new, value in probe.items()}
