"""What a file or folder is, told from its headers: no weight is read."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ..kernels.checkpoint import Header, HeaderError, read_header, read_metadata
from ..kernels.grid import choose_tiling
from ..kernels.head_table import HeadTable, HeadTableError, read_head_table
from ..kernels.msfp.file import MsfpFile
from ..kernels.schedule import Schedule
from ..kernels.timestep_lora import TimestepLora, is_timestep_lora, read_timestep_lora
from .names import HEAD_DIM, KINDS, ModelError
from .state import MANIFEST, read_manifest
from .weights import Weights, open_weights

_RUNS = {"lora": ", a LoRA run", "talora": ", a timestep-aware LoRA run", "": ""}
_LORA = (".lora_A.weight", ".lora_down.weight")

MOST_PATTERNS = 8  # that are listed one by one
MOST_ROWS = 20  # of a route

Lines = list[tuple[str, str]]


def describe(path: str | Path) -> Lines:
    """Return what there is to say as (what, value) pairs; raises ModelError or SnapshotError for anything unknown."""
    path = Path(path).expanduser()
    if (path / MANIFEST).is_file():
        return _state(path)
    if path.is_file() and path.suffix == ".safetensors":
        try:
            metadata, tensors = read_metadata(path)
            if is_timestep_lora(metadata):
                return _hub(read_timestep_lora(path), sorted({kind for kind, _ in tensors.values()}))
        except HeaderError as error:
            raise ModelError(str(error)) from None
        if any(name.endswith(_LORA) for name in tensors):
            return _lora(path, {name: shape for name, (_, shape) in tensors.items()})
    if path.is_file() and path.suffix == ".json":
        try:
            table = read_head_table(path)
        except HeadTableError as error:
            raise ModelError(str(error)) from None
        return [("file", str(path)), ("kind", "head table"), *_schedule(table.schedule), *_heads(table)]
    return _model(open_weights(path))


def _model(weights: Weights) -> Lines:
    shape = weights.shape
    names = {
        "comfyui": "ComfyUI's (with prefix)", "original": "original", "diffusers": "diffusers'",
        "msfp": "original, behind msfp_model.",
    }  # fmt: skip
    size = sum(file.stat().st_size for file in weights.files)
    dtypes = ", ".join(f"{count} tensors {dtype}" for dtype, count in sorted(weights.dtypes.items()))
    lines = [
        ("file", str(weights.path)),
        ("kind", f"Wan2.1 {KINDS[shape.kind]}" + (" in low-bit floating point (MSFP)" if weights.msfp else "")),
        (
            "size",
            f"{shape.parameters / 1e6:,.2f} M parameters: dim {shape.dim} ({shape.heads} heads of {HEAD_DIM}), "
            f"ffn {shape.ffn_dim}, {shape.layers} layers",
        ),
        ("channels", f"{shape.in_channels} in, {shape.out_channels} out; text {shape.text_dim}"),
        ("weights", dtypes + (", scaled (ComfyUI's form)" if weights.scaled else "")),
        ("names", names[weights.naming]),
        ("on disk", f"{size / 2**20:,.1f} MiB in {len(weights.files)} file{'s' * (len(weights.files) > 1)}"),
    ]
    if shape.image_dim:
        lines.insert(4, ("image", f"CLIP feature of {shape.image_tokens} x {shape.image_dim}"))
    return lines + (_packed(weights.msfp) if weights.msfp else []) + _header(Header.from_metadata(weights.metadata))


def _packed(file: MsfpFile) -> Lines:
    """Return what an MSFP file says of its layers: formats by how many layers have them, bits, and its fingerprint."""
    layers = file.layers.values()
    weights = Counter(f"{layer.weight.form.name} per {_shared(layer.weight.granularity)}" for layer in layers)
    inputs = Counter(
        "as they are" if layer.input is None else f"{layer.input.form.name} {layer.input.mode}" for layer in layers
    )
    numbers = {name: file.rows[name] * layer.columns for name, layer in file.layers.items()}
    scale_bits = 8 * next((file.scales(name)[0].element_size() for name in numbers), 4)
    bits = sum(
        layer.weight.bits(file.rows[n], layer.columns, scale_bits) * numbers[n] for n, layer in file.layers.items()
    )
    return [
        ("packed", f"{len(layers)} linear layers, {bits / max(1, sum(numbers.values())):.2f} bits a weight"),
        ("", "weights: " + _counts(weights)),
        ("", "inputs: " + _counts(inputs)),
        ("fingerprint", file.fingerprint or "none"),
    ]


def _shared(granularity: str | int) -> str:
    return granularity if isinstance(granularity, str) else f"{granularity} columns"


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))


def _hub(file: TimestepLora, dtypes: list[str]) -> Lines:
    table = file.table.text.splitlines()
    return [
        ("file", str(file.path)),
        ("kind", "timestep-aware LoRA (TALoRA); its loader is Timestep-aware LoRA, not the stock one"),
        ("layers", f"{len(file.layers)}, each a hub of {file.hub} LoRAs in {', '.join(dtypes)}"),
        ("rank", f"{file.rank}, scale {file.scale:g}"),
        *(("route" if i == 0 else "", line) for i, line in enumerate(table[:MOST_ROWS])),
        *([("", f"and {len(table) - MOST_ROWS} more stretches")] if len(table) > MOST_ROWS else []),
        ("trained on", f"the MSFP model {file.base}" if file.base else "a model in full precision"),
        *_header(file.header),
    ]


def _lora(path: Path, shapes: dict[str, tuple[int, ...]]) -> Lines:
    downs = [name for name in shapes if name.endswith(_LORA)]
    ranks = sorted({shapes[name][0] for name in downs if shapes[name]})
    loaded = sum(name.startswith("diffusion_model.") for name in downs)
    note = "" if loaded == len(downs) else "; ComfyUI ignores those without diffusion_model. in front"
    return [
        ("file", str(path)),
        ("kind", "LoRA"),
        ("layers", f"{len(downs)}, {loaded} of them named diffusion_model.*{note}"),
        ("rank", ", ".join(map(str, ranks))),
        *_header(read_header(path)),
    ]


def _state(path: Path) -> Lines:
    manifest = read_manifest(path)
    size = sum(entry["size"] for entry in manifest["files"].values())
    config = manifest.get("config", {})
    output = config.get("output", {})
    return [
        ("folder", str(path)),
        (
            "kind",
            f"training state of step {manifest['step']}" + (_RUNS[next((key for key in _RUNS if config.get(key)), "")]),
        ),
        ("run", f"{output.get('name', 'unknown')}, output in {output.get('dir', 'unknown')}"),
        ("on disk", f"{size / 2**20:,.1f} MiB in {len(manifest['files'])} files"),
    ]


def _header(header: Header | None) -> Lines:
    if header is None:
        return [("header", "none: an ordinary file, attention is the host's own")]
    tile = "x".join(map(str, header.tile)) if header.tile else "chosen per size"
    return [
        ("header", f"FPSAttention v{header.version}, trained for {header.step} steps by {header.trainer}"),
        *_schedule(header.schedule),
        *([] if header.heads is None else _heads(header.heads)),
        ("tile", f"{tile}, {header.slots} slots"),
        ("fp8", f"{header.fp8_format}, K smoothed: {'yes' if header.smooth_k else 'no'}"),
        ("base", header.base_sha256 or "not recorded"),
    ]


def _schedule(schedule: Schedule) -> Lines:
    return [("schedule" if i == 0 else "", line) for i, line in enumerate(schedule.format().splitlines())]


def _heads(table: HeadTable) -> Lines:
    """Return what a head table holds: its size, its patterns by how many heads use them, its density on its grid."""
    tiling = choose_tiling(table.grid, table.slots, table.tile)
    grid, tile = ("x".join(map(str, extents)) for extents in (table.grid.shape, tiling.tile))
    branches = "prompt and negative prompt apart, " if table.branches > 1 else ""
    means = [table.head_densities(tiling, band).mean() for band in range(len(table.bands))]
    per_band = ", ".join(f"{mean:.1%} to sigma {band.until:g}" for mean, band in zip(means, table.bands))
    counts = table.counts().most_common()
    # A line that says "1 other" takes as much room as the one itself.
    shown = MOST_PATTERNS if len(counts) > MOST_PATTERNS + 1 else len(counts)
    whole = sum(number for _, number in counts)
    lines = [
        ("heads", f"{table.layers} layers of {table.heads} heads, {branches}on {grid} tokens in tiles of {tile}"),
        ("", f"mean density there: {per_band}"),
        *(("", f"{number / whole:6.1%}  {_cut(words)}") for words, number in counts[:shown]),
    ]
    if rest := counts[shown:]:
        lines.append(("", f"{sum(number for _, number in rest) / whole:6.1%}  {len(rest)} other patterns"))
    return lines + ([("", f"found on {table.model}")] if table.model else [])


def _cut(words: str) -> str:
    return words if len(words) <= 80 else f"{words[:77]}..."
