"""2,000 texts that nobody should write, as widget text and over links, through the host's own validation and calls."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re

import execution
import torch
from fps_common import conditioning, load_pack, model_of, pack_module, run_cases

import nodes

TEXTS = int(os.environ.get("FPS_TEXTS", "2000"))
LETTERS = [
    *" \t\n\r\v\f\x1c\x85\u2028\u2029#%-+.0123456789eEx{}[]\",:'\\",
    *("\x00", "\x1b[31m", "\ud83d", "\udcff", "\U0001f600", "\u0663", "\u00bd", "\u2212", "\uff10", "\u202e", "\ufeff"),
    *("NaN", "inf", "1e999", "dense", "fp8", "bf16", "token", "x1", "all", "60%", "until", "null", "true"),
    *("# fps-schedule v2", "# fps-schedule v1, unit step", "\u200b", "y" * 300),
]
CHOSEN = [
    *("", " ", "\ufeff", "#", "[" * 100_000, '{"phases":' * 2_000, "x" * 1_000_000, "\n" * 50_000 + "x"),
    *("0.00 dense\n" * 30, "9" * 5_000, '{"version": ' + "9" * 4_000 + "}", '[{"until": ' + "9" * 4_000 + "}]"),
    *('{"a\\nb": 1}', '{"unit": {"a": "' + "b" * 9_000 + '"}}', '[{"until": 0, "attention": {"a\\n": 1}}]'),
    '[{"until": 0, "attention": "fp8", "granularity": "x1", "window": ["' + "9" * 4_000 + '%", 1, 1]}]',
    '[{"until": 0, "attention": "fp8", "granularity": "x1", "selector": "a\\u0000b"}]',
]
# Every sentence names where: a place in the text, or that it is about all of it.
PLACE = re.compile(
    r"line \d+, column \d+: |phase \d+: |the phase until |the JSON h|'version' is "
    r"|the unit is |the schedule (is empty|has \d+ phases|has no phase)|'.*' is no key of a schedule"
)


def _mangled(draw: random.Random, text: str, parts: list[str]) -> str:
    for _ in range(draw.randrange(1, 8)):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(["", *LETTERS, *parts]) + text[at + draw.randrange(9) :]
    return text


def _value(draw: random.Random, depth: int = 0) -> object:
    kind = draw.randrange(9 if depth < 3 else 7)
    if kind < 4:
        return draw.choice(LETTERS) * draw.choice([1, 1, 200])
    if kind < 7:
        return draw.choice([None, True, 0, -1, 0.5, 10**30, 10**400, float("nan"), float("-inf"), -0.0])
    if kind == 7:
        return [_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    names = ["until", "attention", "granularity", "window", "selector", "version", "unit", "phases", "\n", "z" * 500]
    return {draw.choice(names): _value(draw, depth + 1) for _ in range(draw.randrange(4))}


def _json(draw: random.Random) -> str:
    good = {"until": 0.0, "attention": "fp8", "granularity": "x1", "window": ["all", 20, "60%"]}
    rows = [{k: v if draw.random() < 0.6 else _value(draw) for k, v in good.items()} for _ in range(draw.randrange(3))]
    whole = draw.choice([rows, {"phases": rows}, {"phases": rows, draw.choice(["version", "unit", "x\ny"]): 2}])
    return json.dumps(whole, ensure_ascii=draw.random() < 0.5)


def _texts() -> list[str]:
    draw = random.Random(20261121)
    presets = list(pack_module("kernels.presets").PRESETS.values())
    parts = [line for text in presets for line in text.splitlines()]
    found = list(CHOSEN)
    while len(found) < TEXTS:
        found.append(_json(draw) if draw.random() < 0.3 else _mangled(draw, draw.choice(presets), parts))
    return found


def _faults(sentence: str) -> list[str]:
    """What is wrong with a sentence for people."""
    found = [] if PLACE.match(sentence) else ["no place"]
    found += [] if sentence.isprintable() else ["does not print on one line"]
    found += [] if sentence.endswith(".") else ["no end"]
    return found + ([] if len(sentence) < 420 else [f"{len(sentence)} letters"])


class _Log(logging.Handler):
    """Keeps what the host would write into its log."""

    def __init__(self):
        super().__init__()
        self.bad: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info or "Traceback" in text or not text.isprintable():
            self.bad.append(ascii(text[:300]))


class _Model:
    """Stands at the model input of a prompt; it is never run."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}


SIZE = {"width": 128, "height": 96, "frames": 9, "steps": 4, "shift": 5.0}


def _prompts(text: str) -> dict[str, dict]:
    """Every node that takes the text as a widget's value, in a prompt of its own."""
    preview, schedule = ["2", 0], {"preset": "custom", "schedule": text}
    apply = {"model": ["3", 0], "backend": "auto", "schedule": text}
    return {
        "Schedule": {
            "1": {"class_type": "FPSAttentionPreview", "inputs": {"schedule": preview} | SIZE},
            "2": {"class_type": "FPSAttentionSchedule", "inputs": schedule},
        },
        "Preview": {"1": {"class_type": "FPSAttentionPreview", "inputs": {"schedule": text} | SIZE}},
        "Apply": {
            "1": {"class_type": "FPSAttentionReport", "inputs": {"latent": ["4", 0], "model": ["2", 0]}},
            "2": {"class_type": "FPSAttentionApply", "inputs": apply},
            "3": {"class_type": "FPSOddModel", "inputs": {}},
            "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 96, "batch_size": 1}},
        },
    }


def _is_good(text: str) -> bool:
    try:
        pack_module("kernels.schedule").Schedule.parse(text)
    except pack_module("kernels.schedule").ScheduleError:
        return False
    return True


def case_widgets():
    """Texts in widgets: the host refuses them with our sentence, and logs nothing that does not print."""
    load_pack()
    nodes.NODE_CLASS_MAPPINGS["FPSOddModel"] = _Model
    log = _Log()
    root = logging.getLogger()
    root.handlers[:], before = [log], root.handlers[:]
    wrong, refused = [], 0

    async def all_of_them() -> None:
        nonlocal refused
        for text in _texts():
            # Apply takes an empty text as none.
            wanted = {"Schedule": _is_good(text), "Preview": _is_good(text), "Apply": _is_good(text)}
            wanted["Preview"] = wanted["Apply"] = wanted["Apply"] or not text.strip()
            for name, prompt in _prompts(text).items():
                good, _, _, errors = await execution.validate_prompt("1", prompt, None)
                found = [e for node in errors.values() for e in node["errors"]]
                refused += not good
                if good != wanted[name]:
                    wrong.append([name, ascii(text[:120]), str(found)[:300]])
                for error in found:
                    _, _, sentence = error["details"].partition(" - ")
                    if error["type"] != "custom_validation_failed" or _faults(sentence):
                        wrong.append([name, ascii(text[:120]), ascii(error["details"][:300]), _faults(sentence)])

    try:
        asyncio.run(all_of_them())
    finally:
        root.handlers[:] = before
    return {"wrong": wrong[:5], "refused": refused, "log": log.bad[:5]}


def case_loads():
    """Values that are no name and no dtype: refused in a widget, raised over links, each with its sentence."""
    loader = load_pack()["FPSAttentionLoadWan"]
    load = pack_module("nodes.load")
    file, real = load.inspect_file, {"model_name": "wan.safetensors", "weight_dtype": "default"}
    odd = [None, 5, "", ["a"], {"a": 1}, True, "foo\n\ud83d" * 200]

    def said(call) -> str:
        try:
            return str(call())
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    found = {}
    for value in odd:
        found[f"name {ascii(value)[:20]}"] = said(lambda value=value: loader.execute(**real | {"model_name": value}))
        if value is not None:  # not known yet
            found[f"widget {ascii(value)[:20]}"] = said(lambda value=value: loader.validate_inputs(model_name=value))
    load.inspect_file = lambda name: ("/nowhere", None)
    try:
        for value in odd:
            wanted = real | {"weight_dtype": value}
            found[f"dtype {ascii(value)[:20]}"] = said(lambda wanted=wanted: loader.execute(**wanted))
    finally:
        load.inspect_file = file
    return found


def case_links():
    """Texts over links: the node raises ScheduleError with our sentence, which the host can print."""
    classes = load_pack()
    error_class = pack_module("kernels.schedule").ScheduleError
    model = model_of(layers=1)
    wrong, raised, ran = [], 0, 0
    drawn = {"FPSAttentionPreview": 3, "FPSAttentionApply": 20}

    async def all_of_them() -> None:
        nonlocal raised, ran
        for text in _texts():
            good = _is_good(text)
            for name, inputs in (
                ("FPSAttentionSchedule", {"preset": "custom", "schedule": text}),
                ("FPSAttentionApply", {"model": model, "backend": "auto", "schedule": text}),
                ("FPSAttentionPreview", {"schedule": text} | SIZE),
            ):
                if good and name in drawn:
                    drawn[name] -= 1
                    if drawn[name] < 0:
                        continue
                values = {key: [value] for key, value in inputs.items()}
                _, _, v3_data = execution.get_input_data({}, classes[name], "1")
                try:
                    await execution.get_output_data("1", "1", classes[name], values, v3_data=v3_data)
                    ran += 1
                    if not good and not (name == "FPSAttentionApply" and not text.strip()):
                        wrong.append([name, ascii(text[:120]), "ran"])
                except Exception as error:
                    raised += 1
                    hidden = error.__suppress_context__ or error.__context__ is None
                    if type(error) is not error_class or good or _faults(str(error)) or not hidden:
                        wrong.append([name, ascii(text[:120]), type(error).__name__, ascii(str(error)[:300])])

    asyncio.run(all_of_them())
    return {"wrong": wrong[:5], "raised": raised, "ran": ran}


NUMBERS = {"steps": 4, "density": 0.3, "psnr": 25.0, "phases": 3, "cfg": 1.0, "seed": 2**64 - 1}
CHOICES = {"effort": "runs", "aim": "psnr", "sampler_name": "euler", "scheduler": "simple"}


def case_profile():
    """What FPSAttention Profile says to values over links: by input and value."""
    load_pack()
    arrived = pack_module("nodes.profile_inputs").arrived_problem
    found = {"good": arrived(CHOICES, **NUMBERS)}
    for name in NUMBERS:
        for value in (None, "x" * 9999, float("nan"), float("inf"), -1, 10**5000, 0.5j, [1]):
            found[f"{name} {len(found)}"] = arrived(CHOICES, **NUMBERS | {name: value})
    for name in CHOICES:
        for value in (None, 5, ["euler"], float("nan"), "no such name", "\ud83d"):
            found[f"{name} {len(found)}"] = arrived(CHOICES | {name: value}, **NUMBERS)
    return found


def case_profile_conditioning():
    """What FPSAttention Profile says to conditioning that is none, or empty."""
    classes, found = load_pack(), {}
    latent, model = {"samples": torch.zeros(1, 16, 2, 16, 32)}, model_of(layers=1)
    for name, positive, negative in (
        ("none", None, conditioning()),
        ("negative", conditioning(), "text"),
        ("empty", [], conditioning()),
    ):
        try:
            inputs = NUMBERS | CHOICES | {"positive": positive, "negative": negative, "latent_image": latent}
            classes["FPSAttentionProfile"].execute(model=model, **inputs)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def case_report_names():
    """The names in a report of a prompt that another program queued: null or half a letter where the page writes a
    title."""
    load_pack()
    graph = {"1": {"class_type": "A", "_meta": None}, "2": {"class_type": "B", "_meta": {"title": "mine"}}, "3": {}}
    graph["4"] = {"class_type": "C", "_meta": {"title": "two\nlines \ud83d"}}
    return pack_module("nodes.report").node_names(graph)


run_cases(globals())
