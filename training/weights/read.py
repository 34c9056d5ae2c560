"""A Wan's weights on disk, whatever names they have there, read tensor by tensor and only the rows that are asked for.

A file is opened anew for every tensor: safetensors maps it into memory, and what has been read of a map counts as the
process's memory until the map is closed.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open

from ...kernels.msfp.file import MsfpFile, is_msfp
from ..files import file_sha256
from ..names import PREFIX, ModelError, WanShape, block_count, original_names, shape_of
from .files import Files, Stored, find_files
from .scaled import split_scales

_log = logging.getLogger(__name__)

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# Only found in diffusers' published image-to-video folders, where diffusers itself leaves it out.
_UNUSED = "attn2.norm_added_q.weight"
# What else an all-in-one checkpoint holds beside the model.
_COMPANIONS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "clip_vision.", "conditioner.")
# How other files betray themselves: part of a name, and what it is.
_STRANGERS = (
    (".lora_", "a LoRA; give the model that it belongs to"),
    ("decoder.upsamples.", "a Wan VAE; give it as vae.path and a transformer here"),
    ("decoder.up_blocks.", "a VAE; give it as vae.path and a transformer here"),
    ("vision_model.", "a CLIP vision encoder; give a Wan transformer"),
    ("visual.transformer.", "a CLIP vision encoder; give a Wan transformer"),
    ("encoder.block.0.layer.", "a text encoder; give a Wan transformer"),
    ("token_embedding.", "a text encoder; give a Wan transformer"),
    ("double_blocks.", "a transformer of another family; give a Wan transformer"),
    ("joint_blocks.", "a transformer of another family; give a Wan transformer"),
)


class Weights:
    """An opened Wan: its shape is known and every header is checked, but no weight is read yet."""

    msfp: MsfpFile | None = None

    def __init__(self, files: Files) -> None:
        self.path, self.files, self.metadata = files.path, files.files, files.metadata
        source = str(files.path)
        self.naming, tensors = _original(files.tensors, source)
        tensors, self._scales, self.scaled = split_scales(tensors, files.metadata, source)
        _check_dtypes(tensors, source)
        self.shape: WanShape = shape_of({name: stored.shape for name, stored in tensors.items()}, source)
        self._stored = tensors
        if files.config is not None:
            _check_config(files.config, self.shape, source)

    @cached_property
    def original(self) -> dict[str, str]:
        """Return {diffusers' name: original name}, in the order of the published files."""
        back = {original: name for name, original in original_names(self.shape).items()}
        return {back[name]: name for name in self.shape.tensors()}

    @property
    def names(self) -> list[str]:
        """Diffusers' names of all tensors, which are those of the model's parameters."""
        return list(self.original)

    @property
    def dtypes(self) -> dict[str, int]:
        """Return how many weights have which dtype, as safetensors calls it."""
        counts: dict[str, int] = {}
        for stored in self._stored.values():
            counts[stored.dtype] = counts.get(stored.dtype, 0) + 1
        return counts

    def read(self, name: str, rows: slice | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the tensor of diffusers' name ``name``, or those rows of its first dimension, on the CPU.

        FP8 weights come multiplied by their scale, in float32 unless ``dtype`` is given; others as they are stored.
        """
        original = self.original[name]
        scale = self._scales.get(original)
        tensor = _load(self._stored[original], rows)
        if scale is not None:
            tensor = tensor.float() * _load(scale.stored, rows if scale.per_row else None).float()
        elif tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) and dtype is None:
            dtype = torch.float32
        return tensor if dtype is None else tensor.to(dtype)

    @cached_property
    def sha256(self) -> str:
        """Return the file's SHA-256; of several files the SHA-256 over their lines of hash and name, in order."""
        if len(self.files) == 1:
            return file_sha256(self.files[0])
        lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


def open_weights(path: str | Path) -> Weights:
    """Return the opened weights of a file or folder: ComfyUI's, original or diffusers' names, one file or shards, or
    an MSFP file.

    Raises ModelError with one sentence for what is not a Wan that can be trained, or not complete.
    """
    files = find_files(path)
    if is_msfp(files.metadata):
        from .packed import PackedWeights  # which is one of these

        return PackedWeights(files)
    weights = Weights(files)
    if weights.scaled:
        _log.info("%s is a scaled FP8 file: its weights are multiplied by their scales", weights.path)
    elif any(dtype.startswith("F8") for dtype in weights.dtypes):
        _log.warning("%s holds plain FP8 weights, 3 significant bits each; better start from bf16", weights.path)
    return weights


def _load(stored: Stored, rows: slice | None) -> torch.Tensor:
    with safe_open(stored.file, "pt") as file:
        if rows is None or not stored.shape:
            return file.get_tensor(stored.name).clone()
        return file.get_slice(stored.name)[rows].clone()


def _original(tensors: dict[str, Stored], source: str) -> tuple[str, dict[str, Stored]]:
    """Return how the tensors are named ('comfyui', 'original' or 'diffusers'), and them by original name."""
    prefixed = [name for name in tensors if name.startswith(PREFIX)]
    if prefixed:
        foreign = sorted(n for n in tensors if not n.startswith((PREFIX, *_COMPANIONS)))
        foreign = [name for name in foreign if name != "scaled_fp8"]
        if foreign:
            raise ModelError(
                f"{source}: mixes names with and without {PREFIX}, for example {prefixed[0]} and {foreign[0]}; "
                "give a file of one kind"
            )
        return "comfyui", {name[len(PREFIX) :]: tensors[name] for name in prefixed}
    original, diffusers = "head.modulation" in tensors, "scale_shift_table" in tensors
    attn1 = next((name for name in tensors if ".attn1." in name), None)
    self_attn = next((name for name in tensors if ".self_attn." in name), None)
    if (original or self_attn) and (diffusers or attn1) and not any("decoder." in name for name in tensors):
        raise ModelError(
            f"{source}: mixes original and diffusers' names, for example {self_attn or 'head.modulation'} and "
            f"{attn1 or 'scale_shift_table'}; give a file of one kind"
        )
    if original:
        return "original", tensors
    if diffusers and attn1:
        return "diffusers", _from_diffusers(tensors, source)
    for part, what in _STRANGERS:
        if any(part in name for name in tensors):
            raise ModelError(f"{source}: is {what}")
    raise ModelError(
        f"{source}: is not a Wan transformer (it has neither head.modulation nor diffusers' scale_shift_table)"
    )


def _from_diffusers(tensors: dict[str, Stored], source: str) -> dict[str, Stored]:
    layers = block_count(tensors)
    known = original_names(WanShape.of_kind("flf", 128, 128, layers))
    found = {}
    for name, stored in tensors.items():
        if name.endswith(_UNUSED):
            continue
        if name.startswith("vace_"):
            raise ModelError(f"{source}: is a VACE model; this release trains Wan2.1 models without it")
        found[known.get(name, name)] = stored
    return found


def _check_dtypes(tensors: dict[str, Stored], source: str) -> None:
    for name, stored in tensors.items():
        if stored.dtype not in DTYPES:
            raise ModelError(
                f"{source}: tensor {name} is {stored.dtype}, weights must be {', '.join(DTYPES)}; "
                "give the full-precision file"
            )


def _check_config(config: dict, shape: WanShape, source: str) -> None:
    """Hold diffusers' config.json, if it is one of a Wan, to what the tensors say."""
    name = config.get("_class_name")
    if name not in (None, "WanTransformer3DModel", "WanModel"):
        raise ModelError(f"{source}: its config.json is of a {name}, not of a Wan transformer")
    said = {
        "num_layers": shape.layers,
        "ffn_dim": shape.ffn_dim,
        "num_attention_heads": shape.heads,
        "num_heads": shape.heads,
        "in_channels": shape.in_channels,
        "in_dim": shape.in_channels,
    }
    for key, have in said.items():
        if key in config and config[key] != have:
            raise ModelError(
                f"{source}: config.json says {key} {config[key]}, the tensors say {have}; the folder is incomplete"
            )
