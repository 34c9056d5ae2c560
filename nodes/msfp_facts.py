"""What a MODEL from an MSFP file is, attached to it for the nodes behind, and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from ..kernels.checkpoint import read_metadata
from ..kernels.msfp.file import PREFIX, MsfpFile
from .sentence import one_line

KEY = "fpsattention_msfp"
AS_TRAINED, FULL_PRECISION = "as trained", "full precision"
ACTIVATIONS = (AS_TRAINED, FULL_PRECISION)

_MEANING = {
    AS_TRAINED: "every input of these layers is rounded as the file says, as in training",
    FULL_PRECISION: "the inputs of these layers are not rounded; only the weights are",
}
_NOTHING = "the file rounds no inputs, so either choice gives the same"
_BITS = {"F32": 32, "BF16": 16, "U8": 8}


@dataclass(frozen=True)
class MsfpFacts:
    """Attached to a model by *Load MSFP Wan* and shared by its clones. ``fingerprint`` names the quantized model."""

    name: str
    fingerprint: str
    layers: int
    bits: float
    activations: str

    @property
    def line(self) -> str:
        """The model in one line, for reports."""
        return (
            f"MSFP weights from {self.name}: {self.layers} linear layers at {self.bits:.2f} bits per weight, "
            f"activations {self.activations}"
        )


def msfp_facts(model: Any) -> MsfpFacts | None:
    """Return what *Load MSFP Wan* attached to ``model``, or None for a model from elsewhere."""
    found = model.get_attachment(KEY)
    return found if isinstance(found, MsfpFacts) else None


def facts_of(model_name: str, file: MsfpFile, activations: str) -> MsfpFacts:
    """Return the facts of a file under the name that the user knows it by."""
    return MsfpFacts(
        one_line(model_name), one_line(file.fingerprint), len(file.layers), bits_per_weight(file), activations
    )


def bits_per_weight(file: MsfpFile) -> float:
    """Return the bits that a weight of the packed layers takes on average, scales and zero points included."""
    _, tensors = read_metadata(file.path)
    packed = 0
    for name, layer in file.layers.items():
        for part in ("codes", "scale") if layer.weight.form.signed else ("codes", "scale", "zero"):
            kind, shape = tensors[f"{PREFIX}{name}.{part}"]
            packed += _BITS[kind] * prod(shape)
    return packed / max(1, sum(file.rows[name] * layer.columns for name, layer in file.layers.items()))


def describe_msfp(facts: MsfpFacts, file: MsfpFile) -> str:
    """Return what the file is, a line per thing: layers, formats, inputs, and what ``activations`` does."""
    formats = Counter(f"{x.weight.form.name} per {_granularity(x.weight.granularity)}" for x in file.layers.values())
    inputs = Counter(_input(x.input) for x in file.layers.values())
    rounds = any(x.input is not None for x in file.layers.values())
    return "\n".join(
        [
            f"# {facts.line}",
            f"# weights: {_counted(formats)}",
            f"# inputs: {_counted(inputs)}",
            f"# activations {facts.activations}: {_MEANING[facts.activations] if rounds else _NOTHING}",
            f"# {len(file.plain)} other tensors in their own precision; fingerprint {facts.fingerprint or 'none'}",
            "",
        ]
    )


def _granularity(granularity: str | int) -> str:
    return granularity if isinstance(granularity, str) else f"group of {granularity}"


def _input(quantizer: Any) -> str:
    if quantizer is None:
        return "not rounded"
    sign = "signed" if quantizer.form.signed else "unsigned"
    return f"{sign} {quantizer.form.name} {quantizer.mode}"


def _counted(counts: Counter) -> str:
    return ", ".join(f"{what} ({count} layers)" for what, count in counts.most_common()) or "none"
