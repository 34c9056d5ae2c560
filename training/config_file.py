"""Configurations in and out: TOML files, command-line overrides, and every mistake as one sentence."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ValidationError

from ..kernels.head_table import HeadTable
from .config import ConfigError, RunConfig

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - Python 3.10
    import tomli as tomllib

PACK = Path(__file__).resolve().parent.parent
CONFIGS = Path(__file__).resolve().parent / "configs"
EMBEDDED = CONFIGS / "tiny.toml"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the checked configuration of a TOML file (None: the embedded one) with ``a.b=value`` overrides.

    Raises ConfigError with one sentence.
    """
    path = Path(path) if path is not None else EMBEDDED
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors put a mark in front
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file; shipped: {_shipped()}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the TOML file in it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # TOML's errors are such too, and so are those of text that is not UTF-8
        kind = "TOML" if isinstance(error, tomllib.TOMLDecodeError) else "text in UTF-8"
        raise ConfigError(f"{path}: is not {kind}: {error}; mend it there") from None
    except RecursionError:
        raise ConfigError(f"{path}: is not TOML that can be used: its lists are nested too deeply") from None
    return check_config(table, str(path), overrides)


def check_config(
    table: dict[str, Any], source: str, overrides: Sequence[str] = (), *, heads: HeadTable | None = None
) -> RunConfig:
    """Return the configuration that a nested dict says, changed by ``a.b=value`` overrides.

    ``heads`` is the head table that a saved state holds: the file of ``attention.heads`` may be gone by now.
    Raises ConfigError with one sentence that begins with what is at fault: the source, or an override.
    """
    keys = [_override(table, override) for override in overrides]
    try:
        return RunConfig.model_validate(_expand(table, source), context={"heads": heads})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = tuple(map(str, first["loc"]))
        last = dict(zip(keys, overrides))  # a key that is set twice has the last value
        at_fault = [f"--set {said}" for key, said in last.items() if key == place[: len(key)]]
        beside = [f"--set {said}" for key, said in last.items() if place == key[: len(place)]]
        source = at_fault[-1] if at_fault else " with ".join([source, *beside])
        raise ConfigError(f"{source}: {_sentence(first)}") from None


def with_changes(config: RunConfig, **changes: Any) -> RunConfig:
    """Return the configuration with ``section__key=value`` changes, checked again; raises ConfigError."""
    table = config.model_dump(mode="python", exclude_none=True)
    for name, value in changes.items():
        *parents, last = name.split("__")
        node = table
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    kept = config.attention.heads is not None and "attention__heads" not in changes
    return check_config(table, "configuration", heads=config.attention.table if kept else None)


def as_override(key: str, value: Any) -> str:
    """Return the override that sets ``key`` to ``value``, whatever characters it has."""
    return f"{key}={_toml(value)}"


def _shipped() -> str:
    return ", ".join(sorted(str(p.relative_to(PACK)) for p in CONFIGS.glob("*.toml"))) or "none"


def _override(table: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one key of the table and return where it is."""
    key, sign, text = override.partition("=")
    keys = tuple(part.strip() for part in key.split("."))
    if not sign or not all(keys):
        raise ConfigError(f"--set {override}: write it as section.key=value, for example --set optim.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if text.lstrip()[:1] in tuple("[{\"'"):
            raise ConfigError(f"--set {override}: its value is not TOML: {error}; quote the texts in it") from None
        value = text  # a bare word such as a path or a preset needs no quotes on the command line
    node = table
    for part in keys[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section")
    node[keys[-1]] = _expand(value, f"--set {override}")
    return keys


_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _expand(value: Any, source: str) -> Any:
    """Return the value with ${NAME} and ${NAME:-default} replaced; ${PACK} is the folder of this pack."""
    if isinstance(value, dict):
        return {key: _expand(item, source) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expand(item, source) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name == "PACK":
            return str(PACK)
        found = os.environ.get(name) or default
        if found is None:
            raise ConfigError(f"{source}: ${{{name}}} is not set; export {name}=... or write the path itself")
        return found

    return _VARIABLE.sub(replace, value)


def _sentence(first: dict[str, Any]) -> str:
    """Return a mistake as one sentence: key, value, fix."""
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    kind, value = first["type"], first.get("input")
    if kind == "extra_forbidden":
        *parents, last = first["loc"]
        known = _keys_at(RunConfig, parents)
        hint = _hint(str(last), known)
        return f"unknown key {key}{hint}; known here: {', '.join(known)}"
    if kind == "missing":
        if isinstance(first["loc"][-1], int):
            return f"{key.rpartition('.')[0]} has too few values; write the one at place {first['loc'][-1] + 1} too"
        return f"key {key} is missing; add it"
    if kind == "value_error":
        return f"{key}: {first['ctx']['error']}"
    shown = repr(list(value) if isinstance(value, tuple) else value)
    if len(shown) > 80:
        shown = f"{shown[:60]}... ({len(shown)} characters)"
    return f"{key} is {shown}: {_asked(kind, key, first)}"


def _asked(kind: str, key: str, first: dict[str, Any]) -> str:
    """Return what a value should be, in TOML's words and not in those of Python."""
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"should be a section, [{key}] in the file" if "." not in key else "should be a section of keys"
    if kind == "tuple_type":
        return "should be a list, [a, b, ...]"
    if kind == "too_long":
        return f"should be a list of {first['ctx']['max_length']}"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(key.rpartition(".")[2], first["msg"])
    if kind == "string_type":
        return "should be text, in quotes"
    if kind == "bool_type":
        return "should be true or false"
    if kind == "int_type":
        return "should be a whole number without a point"
    return f"{first['msg'][0].lower()}{first['msg'][1:]}"


_PATTERNS = {
    "device": "should be auto, cpu, cuda, or one card such as cuda:1",
    "name": "should have letters, digits and . _ + - only: it becomes a file's name",
}


def _keys_at(model: type[BaseModel], parents: Sequence[Any]) -> list[str]:
    for parent in parents:
        if isinstance(parent, int):  # an entry of a list: its keys are those of the list's type
            continue
        field = model.model_fields.get(str(parent))
        model = _model_in(field.annotation) if field is not None else None
        if model is None:
            return []
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list, tuple, Annotated):
        for part in typing.get_args(annotation):
            if (found := _model_in(part)) is not None:
                return found
    return None


def _hint(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def to_toml(config: RunConfig) -> str:
    """Return the configuration as TOML; ``load_config`` of it gives the same configuration."""
    lines: list[str] = []
    _write_table(config.model_dump(mode="json", exclude_none=True), "", lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _write_table(table: dict[str, Any], name: str, lines: list[str]) -> None:
    if name:
        lines += ["", f"[{name}]"]
    lines += [f"{key} = {_toml(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(value, f"{name}.{key}" if name else key, lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # TOML's basic strings escape as JSON's do
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return repr(value)
