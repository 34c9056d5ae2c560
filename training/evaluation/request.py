"""What an evaluation is asked for: models, attentions, prompts, and the settings that all videos share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...kernels.checkpoint import Header, HeaderError, read_header
from ...kernels.head_table import KIND, HeadTable, HeadTableError, read_head_table
from ...kernels.presets import PRESETS, preset
from ...kernels.schedule import Schedule, ScheduleError
from ..config import ConfigError
from ..names import ModelError, read_shape
from ..sparse import DENSE, SparseAttention

if TYPE_CHECKING:
    import torch

FROM_FILE, DENSE_NAME = "file", "dense"
_NAME = re.compile(r"[\w.+-]+")
_SIZE = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")
MOST_SEEDS = 10_000


class EvaluationError(ConfigError):
    """A request that cannot be met; the message is one sentence."""


@dataclass(frozen=True)
class ModelFile:
    """A model to evaluate: its name in the table, where it lies, the header that it carries, and a LoRA on it."""

    name: str
    path: Path
    header: Header | None
    lora: Path | None = None

    @property
    def files(self) -> str:
        """The names of its files."""
        return self.path.name if self.lora is None else f"{self.path.name} with {self.lora.name}"


@dataclass(frozen=True)
class Method:
    """One row of the table: a model with an attention. ``key`` names its files."""

    key: str
    title: str
    model: ModelFile
    attention: SparseAttention


@dataclass(frozen=True)
class Settings:
    """What all videos of an evaluation share."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    frames: int
    height: int
    width: int
    steps: int
    shift: float
    cfg: float
    negative: str
    fps: float
    dtype: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The latents' (16, T, H, W)."""
        return (16, (self.frames - 1) // 4 + 1, self.height // 8, self.width // 8)

    @property
    def clips(self) -> list[tuple[str, int, int]]:
        """(name, prompt's number, seed) of every video of a method."""
        return [(f"{i:03d}_seed{seed}", i, seed) for i in range(len(self.prompts)) for seed in self.seeds]


def read_models(given: Sequence[str], loras: Sequence[str] = ()) -> list[ModelFile]:
    """Return the models of ``[NAME=]FILE`` arguments, then the first of them with each LoRA.

    Raises EvaluationError for a missing file or a name twice.
    """
    models: list[ModelFile] = []
    for text, option in [*((text, "--model") for text in given), *((text, "--lora") for text in loras)]:
        name, equals, rest = text.partition("=")
        path = Path(rest if equals and _NAME.fullmatch(name) else text).expanduser()
        if not path.exists():
            raise EvaluationError(f"{option} {text}: there is no file {path}; check the path")
        label = name if equals and _NAME.fullmatch(name) else path.stem if path.is_file() else path.name
        try:
            header = read_header(path) if path.is_file() else None
        except HeaderError as error:
            raise EvaluationError(f"{option} {text}: {error}") from None
        if any(model.name == label for model in models):
            raise EvaluationError(f"{option}: two models are called '{label}'; give names, as in new={path}")
        lora = option == "--lora"
        models.append(ModelFile(label, models[0].path if lora else path, header, path if lora else None))
    return models


def make_methods(
    models: Sequence[ModelFile], given: Sequence[str], *, slots: int = 64, backend: str = "auto"
) -> list[Method]:
    """Return the table's rows: every model with every attention of ``[NAME=]SCHEDULE`` arguments.

    The first row is the first model, dense: what all others are compared with. A schedule is a preset's name,
    'dense', 'file' (the model file's own), a file, or text with ';' for line ends. A file with a head table stands for
    the schedule that it was searched with; other schedules that say 'heads' take the table of the model's file. Without
    arguments every model runs dense, and by its file's schedule, or by 'mild' if no file has one. Raises
    EvaluationError.
    """
    any_header = any(model.header for model in models)
    named = [_named(text) for text in given] or [_named(DENSE_NAME), _named(FROM_FILE if any_header else "mild")]
    for number, (name, _) in enumerate(named):
        if name in [other for other, _ in named[:number]]:
            raise EvaluationError(f"--attention: two are called '{name}'; give each a name of its own")
    if any(text == FROM_FILE for _, text in named) and not any_header:
        raise EvaluationError("--attention file: no model file carries a schedule; name a preset or write a schedule")
    methods: list[Method] = []
    for model in models:
        for name, text in named:
            attention = _attention(name, text, model, slots, backend)
            if attention is None:
                continue
            title = name if len(models) == 1 else f"{model.name}: {name}"
            key = name if len(models) == 1 else f"{model.name}.{name}"
            methods.append(Method(key, title, model, attention))
    first = next((m for m in methods if m.model is models[0] and m.attention.schedule.is_dense), None)
    if first is None:
        title = DENSE_NAME if len(models) == 1 else f"{models[0].name}: {DENSE_NAME}"
        first = Method(title.replace(": ", "."), title, models[0], replace(DENSE, backend=backend))
    return [first, *(method for method in methods if method is not first)]


def _named(text: str) -> tuple[str, str]:
    name, equals, schedule = text.partition("=")
    if equals and _NAME.fullmatch(name.strip()):
        return name.strip(), schedule.strip()
    word = text.strip()
    # A file may lie anywhere; its name is the row's.
    if len(word) < 1024 and _NAME.fullmatch(Path(word).stem) and Path(word).is_file():
        return Path(word).stem, word
    if not _NAME.fullmatch(word):
        shown = " ".join(word.split())
        raise EvaluationError(f"--attention '{shown[:60]}' has no name; write --attention my-name='...'")
    return word, word


def _attention(name: str, text: str, model: ModelFile, slots: int, backend: str) -> SparseAttention | None:
    """Return what a schedule's text means for a model; None where it asks for a header that the model has not."""
    header, tile, smooth = model.header, None, True
    table = None if header is None else header.heads
    if header is not None:  # a trained model's tiles are part of it
        slots, tile, smooth = header.slots, header.tile, header.smooth_k
    if text == FROM_FILE:
        if header is None:
            return None
        schedule = header.schedule
    elif (found := _table(name, text)) is not None:
        schedule, table = found.schedule, found
        if header is None:
            slots, tile = found.slots, found.tile
    else:
        schedule = _schedule(name, text)
    if schedule.uses_heads:
        _check_table(name, table, model)
    return SparseAttention(schedule, slots, tile, smooth, backend, table if schedule.uses_heads else None)


def _table(name: str, text: str) -> HeadTable | None:
    """Return the head table that a JSON file holds, None for any other text; raises EvaluationError."""
    path = Path(text)
    if path.suffix.lower() != ".json" or not _is_file(path):
        return None
    try:
        if KIND not in path.read_text(encoding="utf-8-sig"):  # a schedule may be JSON as well
            return None
        return read_head_table(path)
    except HeadTableError as error:
        raise EvaluationError(f"--attention {name}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"--attention {name}: {text} cannot be read as text ({error}); check the file") from None


def _check_table(name: str, table: HeadTable | None, model: ModelFile) -> None:
    if table is None:
        raise EvaluationError(
            f"--attention {name}: the schedule says 'heads', but {model.files} carries no head table; "
            "give the table's JSON file in place of the schedule"
        )
    try:
        shape = read_shape(model.path)
    except (HeaderError, ModelError) as error:
        raise EvaluationError(f"--model {model.path}: {error}") from None
    if problem := table.misfit(shape.layers, shape.heads):
        raise EvaluationError(f"--attention {name}, {model.files}: {problem}")


def _schedule(name: str, text: str) -> Schedule:
    if text in PRESETS:
        return preset(text)
    try:
        if Path(text).is_file():
            return Schedule.parse(Path(text).read_text(encoding="utf-8-sig"))
        if not re.search(r"[\s{\[]", text):
            raise EvaluationError(
                f"--attention {name}: '{text}' is neither a preset ({', '.join(PRESETS)}), nor 'file', nor a file that "
                "is there, nor a schedule; check its spelling"
            )
        return Schedule.parse(text if text[0] in "{[" else text.replace(";", "\n"))
    except ScheduleError as error:
        raise EvaluationError(f"--attention {name}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"--attention {name}: {text} cannot be read as text ({error}); check the file") from None


def read_prompts(given: Sequence[str], *, encoder: bool) -> tuple[str, ...]:
    """Return the prompts of the arguments: texts, or files with one prompt per line (empty lines do not count).

    Without arguments there is one empty prompt where no text encoder could read one. Raises EvaluationError.
    """
    if not given:
        if encoder:
            raise EvaluationError("--prompts is missing; give texts, or a file with one prompt per line")
        return ("",)
    found: list[str] = []
    for text in given:
        path = Path(text).expanduser()
        if path.suffix.lower() in (".txt", ".csv", ".json", ".jsonl") or _is_file(path):
            found += _prompt_lines(path)
        else:
            found.append(text.strip())
    if not all(found):
        raise EvaluationError("--prompts: a prompt is empty; write its text, or leave it out")
    repeated = [prompt for number, prompt in enumerate(found) if prompt in found[:number]]
    if repeated:
        raise EvaluationError(f"--prompts: '{repeated[0][:60]}' is there twice; use --seeds for more than one video")
    return tuple(found)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a long prompt is no path
        return False


def _prompt_lines(path: Path) -> list[str]:
    if path.suffix.lower() in (".csv", ".json", ".jsonl"):
        raise EvaluationError(f"--prompts {path}: is not a text file; write one prompt per line into a .txt file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise EvaluationError(f"--prompts {path}: there is no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"--prompts {path}: cannot be read as text ({error}); save it as UTF-8") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise EvaluationError(f"--prompts {path}: holds no prompt; write one per line")
    return found


def read_size(text: str) -> tuple[int, int, int]:
    """Return (frames, height, width) of ``WIDTHxHEIGHT[xFRAMES]``; raises EvaluationError with the next sizes."""
    match = _SIZE.fullmatch(text.lower())
    if match is None:
        raise EvaluationError(f"--size is '{text}'; write WIDTHxHEIGHTxFRAMES, for example 832x480x81")
    width, height, frames = (int(part or 81) for part in match.groups())
    for name, value in (("width", width), ("height", height)):
        if value % 16 or not 16 <= value <= 8192:
            low = min(8192, max(16, value // 16 * 16))
            raise EvaluationError(f"--size {text}: {name} {value} is not a multiple of 16 up to 8192; use {low}")
    if frames % 4 != 1:
        low = max(1, (frames - 1) // 4 * 4 + 1)
        raise EvaluationError(f"--size {text}: {frames} frames are not 4k + 1; use {low} or {low + 4}")
    return frames, height, width


def read_seeds(given: Sequence[str]) -> tuple[int, ...]:
    """Return the seeds of numbers and ranges such as 0-4; raises EvaluationError."""
    found: list[int] = []
    for text in given:
        first, dash, last = text.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise EvaluationError(f"--seeds: '{text}' is not a number from 0 up or a range such as 0-4")
        low, high = int(first), int(last or first)
        if high < low or high - low >= MOST_SEEDS or high >= 2**63:
            raise EvaluationError(f"--seeds: '{text}' is no range of up to {MOST_SEEDS:,} seeds; write low-high")
        found += range(low, high + 1)
    if len(set(found)) != len(found):
        raise EvaluationError("--seeds: a seed is there twice; remove one")
    return tuple(found)


def run_dtype(choice: str, device: torch.device) -> str:
    """Return the precision of the forward passes: what was asked for, or bfloat16 on a card and float32 on a CPU."""
    if choice != "auto":
        return choice
    return "bf16" if device.type == "cuda" else "fp32"
