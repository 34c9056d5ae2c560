"""Doing a quantization: check, calibrate, search layer by layer, write file and report."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...kernels.checkpoint import Header, check_space
from ...kernels.msfp.file import PackedLayer, fingerprint_of, write_msfp
from ...kernels.msfp.formats import FormatError, candidates
from ...kernels.msfp.packing import packed_width
from ...kernels.msfp.weights import CHANNEL, TENSOR, PackedWeight, WeightFormat
from ..config import ConfigError
from ..data.text import TEXT_DIM, ZEROS
from ..distributed import World, pick_device
from ..evaluation.request import EvaluationError, read_prompts, read_seeds, read_size, run_dtype
from ..evaluation.texts import encode_prompts
from ..export_file import TRAINER
from ..lora import linear_layers
from ..model import for_inference, load_model
from ..sample import sample
from ..weights import Weights, open_weights
from .cli import ASSETS, PUBLISHED, TINY, quantize_arguments
from .layers import KEEPS, OBSERVED, kind_of, quantized_layers
from .samples import InputSamples, check_samples, watched
from .search_input import InputChoice, search_input
from .search_weight import default_scale_dtype, search_weight

NOTHING = "none"
# What says how calibration clips are sampled.
CLIPS = ("prompts", "text_encoder", "negative", "seeds", "size", "steps", "cfg", "shift", "tokens", "dtype")


class QuantizeError(ConfigError):
    """A quantization that cannot be made; the message is one sentence."""


def quantize(args: argparse.Namespace, say: Callable[[str], None]) -> Iterator[str]:
    """Quantize as the arguments say and yield what to tell of it. Raises QuantizeError and the usual errors, before
    anything is sampled where they can be known then."""
    from .report import LayerResult, write_report

    start = time.monotonic()
    path = Path(args.model or ASSETS / "wan2.1-tiny-t2v.safetensors").expanduser()
    if not path.exists():
        raise QuantizeError(f"--model {path}: there is no such file; check the path")
    weights = open_weights(path)
    if weights.msfp is not None:
        raise QuantizeError(f"{path}: is quantized already (MSFP); give the Wan in full precision that it was made of")
    out = _target(args, path)
    device = pick_device(args.device, World())
    layers = _layers(args, weights)
    if args.form == "nvfp4":
        yield from _nvfp4(args, weights, layers, out, device)
        return
    granularity = _granularity(args, weights, layers)
    check_space(out, _bytes(args.bits, granularity, weights, layers))
    if args.inputs == NOTHING:
        _refuse_idle(args, CLIPS, "--inputs none, which samples no clip")
    elif args.prompts and args.text_encoder == ZEROS:
        say("without --text-encoder prompts are not read: calibration sees no text")
    samples = {} if args.inputs == NOTHING else _calibrate(args, weights, path, layers, device, out)
    inputs = {
        name: search_input(found.tokens, args.input_bits, args.inputs, args.method)
        for name, found in tqdm(samples.items(), desc="inputs", unit="layer", disable=not samples)
    }

    packed, results = {}, []
    names = {original: name for name, original in weights.original.items()}
    for name in tqdm(layers, desc="weights", unit="layer"):
        weight = weights.read(names[f"{name}.weight"]).to(device)
        try:
            found = search_weight(weight, args.bits, granularity, args.method)
        except ValueError as error:
            raise QuantizeError(f"{path}: layer {name}: {error}; give a sound file") from None
        packed[name] = found.packed.to("cpu")
        results.append(LayerResult(name, found, inputs.get(name), samples.get(name)))
    observed = [LayerResult(name, None, choice, samples[name]) for name, choice in inputs.items() if name not in packed]
    kept = {name: PackedLayer(one.format, one.columns, _quantizer(inputs, name)) for name, one in packed.items()}
    fingerprint = fingerprint_of(kept, {name: one.scale for name, one in packed.items()})
    facts = {"method": args.method, "trainer": TRAINER, "base_sha256": weights.sha256}
    _write(out, weights, kept, packed, granularity, fingerprint, facts)

    yield _size(out, weights)
    yield from _summary(results)
    folder = out.with_name(f"{out.stem}-report")
    asked = {key: value for key, value in vars(args).items() if key not in ("no_plots", "overwrite", "device")}
    made = {**asked, "model": path.name, "fingerprint": fingerprint, "seconds": round(time.monotonic() - start, 1)}
    yield f"report: {write_report(folder, results, observed, made, plots=not args.no_plots)}"


def _nvfp4(
    args: argparse.Namespace, weights: Weights, layers: list[str], out: Path, device: torch.device
) -> Iterator[str]:
    """Write ComfyUI's own 4-bit form."""
    from .nvfp4 import nvfp4, nvfp4_layout, write_nvfp4

    settings = ("bits", "granularity", "inputs", "input_bits", "method", *CLIPS)
    _refuse_idle(args, settings, "--form nvfp4, which is one form, of weights alone")
    nvfp4_layout()
    names, packed, errors = {original: name for name, original in weights.original.items()}, {}, []
    for name in tqdm(layers, desc="weights", unit="layer"):
        try:
            packed[name], error = nvfp4(weights.read(names[f"{name}.weight"]).to(device))
        except ValueError as wrong:
            raise QuantizeError(f"{weights.path}: layer {name}: {wrong}") from None
        errors.append(error)
    write_nvfp4(out, weights, packed)
    yield _size(out, weights)
    yield f"mean error of {len(layers)} weights {sum(errors) / len(errors):.4f}; any loader of ComfyUI takes the file"


def _refuse_idle(args: argparse.Namespace, names: Sequence[str], what: str) -> None:
    """Refuse options that were given and say nothing to ``what``."""
    default = quantize_arguments()
    for name in names:
        if getattr(args, name) != getattr(default, name):
            raise QuantizeError(f"--{name.replace('_', '-')} says nothing to {what}; remove it")


def _bytes(bits: int, granularity: str | int, weights: Weights, layers: Sequence[str]) -> int:
    """Return what the file will take."""
    form, scale = WeightFormat(candidates(bits, True)[0], granularity), default_scale_dtype(granularity).itemsize
    packed, total = {f"{name}.weight" for name in layers}, 0
    for name, shape in weights.shape.tensors().items():
        count = math.prod(shape)
        if name in packed:
            total += count * bits // 8 + scale * math.prod(form.scale_shape(*shape))
        else:
            total += count * _plain_dtype(name, shape).itemsize
    return total


def _size(out: Path, weights: Weights) -> str:
    size, numbers = out.stat().st_size, sum(math.prod(shape) for shape in weights.shape.tensors().values())
    whole = 2 * numbers / 1e6
    return f"{out}: {size / 1e6:,.1f} MB, {8 * size / numbers:.2f} bits per weight ({whole:,.1f} MB in bf16)"


def _quantizer(inputs: Mapping[str, InputChoice], name: str):
    return inputs[name].quantizer if name in inputs else None


def _target(args: argparse.Namespace, model: Path) -> Path:
    kind = "nvfp4" if args.form == "nvfp4" else f"msfp{args.bits}"
    name = f"{model.stem}-{kind}.safetensors"
    path = Path(args.out or Path("output") / "msfp" / name).expanduser().absolute()
    if path.is_dir():
        raise QuantizeError(f"--out {args.out}: is a folder; name a file in it, such as {path / name}")
    if path.suffix != ".safetensors":
        raise QuantizeError(f"--out {args.out}: the file is a .safetensors file; name it so")
    if path.exists() and path.samefile(model):
        raise QuantizeError(f"--out {args.out}: is the model that is read; name another file")
    if path.exists() and not args.overwrite:
        raise QuantizeError(f"--out: {path} is there already; name another file, or add --overwrite")
    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise QuantizeError(f"--out {path}: {nearest} cannot be written to; name another folder")
    return path


def _layers(args: argparse.Namespace, weights: Weights) -> list[str]:
    every = [name.removesuffix(".weight") for name in weights.shape.tensors() if name.endswith(".weight")]
    blocks = weights.shape.layers
    parts = {kind_of(name) for name in quantized_layers(every, blocks)}
    for part in args.keep:
        if part not in KEEPS and part not in parts:
            raise QuantizeError(f"--keep {part}: no block has such a layer; it has {', '.join(sorted(parts))}")
    if args.keep_blocks < 0:
        raise QuantizeError(f"--keep-blocks is {args.keep_blocks}, it must be at least 0")
    found = quantized_layers(every, blocks, args.keep_blocks, args.keep)
    if not found:
        raise QuantizeError(f"--keep and --keep-blocks leave nothing of {blocks} blocks to quantize; keep less")
    return found


def _granularity(args: argparse.Namespace, weights: Weights, layers: list[str]) -> str | int:
    text = args.granularity
    granularity = int(text) if text.isascii() and text.isdigit() else text
    if granularity not in (TENSOR, CHANNEL) and not isinstance(granularity, int):
        raise QuantizeError(f"--granularity is '{text}'; write tensor, channel, or a group's size such as 64")
    shapes = weights.shape.tensors()
    try:
        form = WeightFormat(candidates(args.bits, True)[0], granularity)
        for name in layers:
            form.scale_shape(*shapes[f"{name}.weight"])
    except FormatError as error:
        raise QuantizeError(f"--granularity {text}: {error}") from None
    for name in layers:
        try:
            packed_width(shapes[f"{name}.weight"][1], args.bits)
        except FormatError as error:
            raise QuantizeError(f"--bits {args.bits}: layer {name}: {error}; --keep {kind_of(name)}") from None
    return granularity


def _calibrate(
    args: argparse.Namespace, weights: Weights, path: Path, layers: list[str], device: torch.device, out: Path
) -> dict[str, InputSamples]:
    """Return samples of the layers' inputs from clips that the model makes."""
    if weights.shape.in_channels != 16:
        raise QuantizeError(
            f"{path}: is an image-to-video model, which needs a picture for every calibration clip; quantize its "
            "weights alone (--inputs none)"
        )
    if weights.shape.text_dim != TEXT_DIM:
        raise QuantizeError(
            f"{path}: takes text embeddings of width {weights.shape.text_dim}, UMT5's have {TEXT_DIM}; "
            "quantize its weights alone (--inputs none)"
        )
    usual = PUBLISHED if args.model else TINY
    chosen = {name: usual[name] if getattr(args, name) is None else getattr(args, name) for name in usual}
    try:
        frames, height, width = read_size(chosen["size"])
        prompts = read_prompts(args.prompts, encoder=args.text_encoder != ZEROS)
        seeds = read_seeds(args.seeds)
    except EvaluationError as error:
        raise QuantizeError(str(error)) from None
    for name in ("cfg", "shift"):
        if not 0 < chosen[name] < 1000:
            raise QuantizeError(f"--{name} is {chosen[name]:g}, it must lie above 0 and below 1000")
    if not 1 <= chosen["steps"] <= 1000:
        raise QuantizeError(f"--steps is {chosen['steps']}, it must be 1 to 1000")
    if args.tokens < 1:
        raise QuantizeError(f"--tokens is {args.tokens}, it must be at least 1")
    dtype = run_dtype(args.dtype, device)
    texts, negative, _ = encode_prompts(prompts, args.negative, args.text_encoder, out.parent / "texts", device)
    model = for_inference(load_model(path), dtype, device)
    linears = {name: layer for name, (_, layer) in linear_layers(model).items()}
    wanted = {name: linears[name] for name in (*layers, *OBSERVED)}
    calls = len(texts) * chosen["steps"] * (2 if chosen["cfg"] != 1 else 1)
    shape = (16, (frames - 1) // 4 + 1, height // 8, width // 8)
    with watched(wanted, -(-args.tokens // (calls * len(seeds)))) as found:
        bar = tqdm(total=len(texts) * len(seeds) * chosen["steps"], desc="calibration", unit="step")
        for text in texts:
            for seed in seeds:
                sample(
                    model, shape=shape, seeds=[seed], text=text, steps=chosen["steps"], shift=chosen["shift"],
                    cfg=chosen["cfg"], negative=negative, dtype=dtype, on_step=bar.update,
                )  # fmt: skip
        bar.close()
    check_samples(found)
    return found


def _write(
    out: Path,
    weights: Weights,
    layers: Mapping[str, PackedLayer],
    packed: Mapping[str, PackedWeight],
    granularity: str | int,
    fingerprint: str,
    facts: Mapping[str, str],
) -> None:
    """Write the file: packed layers, and everything else in bf16 (what has one axis, and modulations, in float32)."""
    shapes = weights.shape.tensors()
    plain = {
        name: (_plain_dtype(name, shape), shape)
        for name, shape in shapes.items()
        if not (name.endswith(".weight") and name.removesuffix(".weight") in layers)
    }

    def tensors() -> Iterator[tuple[str, Any]]:
        yield from packed.items()
        for name, original in weights.original.items():
            if original in plain:
                tensor = weights.read(name)
                if broken := int((~tensor.isfinite()).sum()):
                    raise QuantizeError(
                        f"{weights.path}: {original}: {broken} of its {tensor.numel()} numbers are not finite; give a "
                        "sound file"
                    )
                yield original, tensor.to(plain[original][0])

    write_msfp(
        out,
        layers,
        {name: one.shape[0] for name, one in packed.items()},
        plain,
        tensors(),
        scale_dtype=default_scale_dtype(granularity),
        fingerprint=fingerprint,
        header=Header.from_metadata(weights.metadata),
        facts=facts,
    )


def _plain_dtype(name: str, shape: tuple[int, ...]) -> torch.dtype:
    return torch.float32 if len(shape) == 1 or name.endswith("modulation") else torch.bfloat16


def _summary(results: list) -> Iterator[str]:
    """Yield a line per kind of layer: formats, and mean errors against signed formats alone and integers."""
    kinds: dict[str, list] = {}
    for one in results:
        kinds.setdefault(kind_of(one.layer), []).append(one)
    yield f"{'layer':16} {'weight error':>12} {'INT':>8}   {'input error':>12} {'signed':>8} {'INT':>8}   unsigned"

    def mean(values) -> str:
        found = [value for value in values if value is not None]
        return f"{sum(found) / len(found):.4f}" if found else "-"

    for kind, group in kinds.items():
        chosen = [one.input for one in group if one.input is not None and one.input.quantizer is not None]
        unsigned = sum(not one.quantizer.form.signed for one in chosen)
        yield (
            f"{kind:16} {mean(one.weight.error for one in group):>12} {mean(one.weight.integer for one in group):>8}   "
            f"{mean(one.error for one in chosen):>12} {mean(one.signed for one in chosen):>8} "
            f"{mean(one.integer for one in chosen):>8}   {f'{unsigned} of {len(group)}' if chosen else '-'}"
        )
