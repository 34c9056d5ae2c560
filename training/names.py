"""The original (ComfyUI) tensor names of a Wan transformer, their shapes, and the way to diffusers' names and back.

ComfyUI recognizes Wan by the original names, diffusers uses its own. The map is diffusers' own converter, probed with
one number per name, so that nothing of it is repeated here and it can be inverted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ModelSection

PREFIX = "model.diffusion_model."
HEAD_DIM = 128
# What CLIP's vision tower (ViT-H) gives of one image: its tokens, and their width.
IMAGE_TOKENS = 257
IMAGE_DIM = 1280
# An image-to-video model sees 16 noisy channels, 4 of the mask, and 16 of the conditioning latent.
IMAGE_CHANNELS = 36
KINDS = {"t2v": "text-to-video", "i2v": "image-to-video", "flf": "first-last-frame"}

# A tensor whose name starts so belongs to a Wan variant that this trainer does not train.
VARIANTS = {
    "vace_patch_embedding": "a VACE model",
    "control_adapter.": "a camera-control model",
    "casual_audio_encoder.": "a speech-to-video model (S2V)",
    "audio_proj.": "a HuMo model",
    "face_adapter.": "an Animate model",
    "patch_embedding_pose": "a SCAIL model",
    "ref_conv.": "a reference-image (Fun control) model",
}
TRAINED = "this release trains Wan2.1 text-to-video, image-to-video and first-last-frame models only"
_POSITIONS = ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


class ModelError(ValueError):
    """A weights file that the trainer cannot use; the message is one sentence."""


@dataclass(frozen=True)
class WanShape:
    """The numbers that make a Wan transformer: text-to-video, image-to-video or first-last-frame."""

    dim: int
    ffn_dim: int
    layers: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    image_dim: int = 0
    """Width of the CLIP feature that the model conditions on, 0 for none."""
    position_tokens: int = 0
    """Image tokens that have a learned position (514 = two images of a first-last-frame model), 0 for none."""

    @staticmethod
    def of_kind(kind: str, dim: int, ffn_dim: int, layers: int, text_dim: int = 4096) -> WanShape:
        """Return the shape of a model of a kind: 't2v', 'i2v' or 'flf'."""
        if kind == "t2v":
            return WanShape(dim, ffn_dim, layers, text_dim=text_dim)
        positions = 2 * IMAGE_TOKENS if kind == "flf" else 0
        return WanShape(dim, ffn_dim, layers, IMAGE_CHANNELS, 16, text_dim, 256, IMAGE_DIM, positions)

    @property
    def kind(self) -> str:
        """What the model conditions on: 't2v' text, 'i2v' and a first frame, 'flf' and a first and a last frame."""
        if not self.image_dim:
            return "t2v"
        return "flf" if self.position_tokens else "i2v"

    @property
    def image_tokens(self) -> int:
        """CLIP tokens that one sample conditions on."""
        return self.position_tokens or (IMAGE_TOKENS if self.image_dim else 0)

    @property
    def heads(self) -> int:
        """Attention heads; Wan's are always 128 wide."""
        return self.dim // HEAD_DIM

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return every original tensor name with its shape, in the order of the published files."""
        d, f = self.dim, self.ffn_dim

        def linear(name: str, out: int, inp: int) -> dict[str, tuple[int, ...]]:
            return {f"{name}.weight": (out, inp), f"{name}.bias": (out,)}

        def norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
            return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

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
            if self.image_dim:
                shapes |= linear(f"{block}.cross_attn.k_img", d, d) | linear(f"{block}.cross_attn.v_img", d, d)
                shapes[f"{block}.cross_attn.norm_k_img.weight"] = (d,)
            shapes |= norm(f"{block}.norm3", d)
            shapes |= linear(f"{block}.ffn.0", f, d) | linear(f"{block}.ffn.2", d, f)
        shapes["head.modulation"] = (1, 2, d)
        shapes |= linear("head.head", 4 * self.out_channels, d)
        if self.position_tokens:
            shapes["img_emb.emb_pos"] = (1, self.position_tokens, self.image_dim)
        if self.image_dim:
            wide = self.image_dim
            shapes |= norm("img_emb.proj.0", wide) | linear("img_emb.proj.1", wide, wide)
            shapes |= linear("img_emb.proj.3", d, wide) | norm("img_emb.proj.4", d)
        return shapes

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(math.prod(shape) for shape in self.tensors().values())


def shape_of(tensors: Mapping[str, tuple[int, ...]], source: str) -> WanShape:
    """Return the model's shape, read from {original name: tensor shape}.

    Raises ModelError with one sentence when the file is not a Wan transformer that can be trained.
    """
    if "head.modulation" not in tensors:
        raise ModelError(f"{source}: is not a Wan transformer (it has no tensor head.modulation)")
    for start, what in VARIANTS.items():
        if any(name.startswith(start) for name in tensors):
            raise ModelError(f"{source}: is {what}; {TRAINED}")
    try:
        patch, positions = tensors["patch_embedding.weight"], tensors.get("img_emb.emb_pos")
        shape = WanShape(
            dim=tensors["head.modulation"][-1],
            ffn_dim=tensors["blocks.0.ffn.0.weight"][0],
            layers=block_count(tensors),
            in_channels=patch[1],
            out_channels=tensors["head.head.weight"][0] // 4,
            text_dim=tensors["text_embedding.0.weight"][1],
            freq_dim=tensors["time_embedding.0.weight"][1],
            image_dim=tensors["img_emb.proj.1.weight"][0] if any(n.startswith("img_emb.") for n in tensors) else 0,
            position_tokens=positions[1] if positions is not None else 0,
        )
    except KeyError as error:
        raise ModelError(f"{source}: lacks the tensor {error.args[0]}; the file is incomplete") from None
    except IndexError:
        raise ModelError(f"{source}: its tensors have too few dimensions for a Wan transformer") from None
    _check_numbers(shape, source)
    expected = shape.tensors()
    for name, want in expected.items():
        if name not in tensors:
            raise ModelError(f"{source}: lacks the tensor {name}; the file is incomplete")
        if tuple(tensors[name]) != want:
            raise ModelError(f"{source}: tensor {name} has shape {tuple(tensors[name])}, expected {want}")
    extra = sorted(set(tensors) - set(expected))
    if extra:
        raise ModelError(
            f"{source}: has {len(extra)} tensors that no Wan2.1 {KINDS[shape.kind]} model has, first {extra[0]}; "
            "give a model without them"
        )
    return shape


def block_count(names: Iterable[str]) -> int:
    """Return how many blocks the names speak of."""
    return 1 + max((int(match.group(1)) for name in names if (match := _BLOCK.match(name))), default=-1)


def _check_numbers(shape: WanShape, source: str) -> None:
    if shape.dim < HEAD_DIM or shape.dim % HEAD_DIM:
        raise ModelError(f"{source}: has dim {shape.dim}, which is not a multiple of Wan's head dimension {HEAD_DIM}")
    wanted = IMAGE_CHANNELS if shape.image_dim else 16
    if shape.in_channels != wanted or shape.out_channels != 16:
        missing = " without an image embedding (Wan2.2)" if shape.in_channels == IMAGE_CHANNELS else ""
        raise ModelError(
            f"{source}: takes {shape.in_channels} and gives {shape.out_channels} latent channels{missing}; {TRAINED}"
        )
    if shape.position_tokens not in (0, 2 * IMAGE_TOKENS):
        raise ModelError(
            f"{source}: has {shape.position_tokens} positions of image tokens, a first-last-frame model has "
            f"{2 * IMAGE_TOKENS}; {TRAINED}"
        )


def read_shape(path: str | Path) -> WanShape:
    """Return the model's shape from the headers of its file or files alone; raises ModelError with one sentence."""
    from .weights import open_weights

    return open_weights(path).shape


def planned_shape(section: ModelSection) -> WanShape:
    """Return the shape of the model that ``[model]`` names, without loading weights; raises ModelError."""
    if section.init == "random":
        return WanShape.of_kind(section.kind or "t2v", section.dim, section.ffn_dim, section.layers, section.text_dim)
    return read_shape(section.path)


def to_diffusers(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with diffusers' names for original ones, by diffusers' own converter."""
    from .torchvision_guard import hide_broken_torchvision

    hide_broken_torchvision()
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    converted = convert_wan_transformer_to_diffusers(dict(tensors))  # it empties what it is given
    original, new = _POSITIONS  # the one name of a first-last-frame model that the converter leaves as it is
    return {new if name == original else name: value for name, value in converted.items()}


@lru_cache(maxsize=8)
def _probed(shape: WanShape) -> dict[str, str]:
    import torch

    names = list(shape.tensors())
    probe = to_diffusers({name: torch.tensor(float(i)) for i, name in enumerate(names)})
    return {new: names[int(value)] for new, value in probe.items()}


def original_names(shape: WanShape) -> dict[str, str]:
    """Return {diffusers' name: original name} for every tensor of a model of this shape."""
    return dict(_probed(shape))
