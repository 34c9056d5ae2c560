"""Inputs as people have them: linked text, a file for another tile, prompts saved by an older version of the pack."""

from __future__ import annotations

import json
import time
import uuid

import pytest
from fpsattention.kernels.checkpoint import Header, write_checkpoint
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.comfy_host import ComfyHostError

SCHEDULE = Schedule.parse("0.90 fp8 x2 all 4 4\n0.00 fp8 x1 1 all all")


@pytest.fixture(scope="module")
def ready(server, tiny):
    folder = server.base / "models" / "diffusion_models"
    tiny.write_tiny_wan(folder / "plain.safetensors")
    # 5 x 3 x 4 tokens a tile do not suit a grid of 3 x 6 x 8; 60 slots are binding.
    write_checkpoint(folder / "trained.safetensors", tiny.tiny_wan(), Header(SCHEDULE, slots=60, tile=(5, 3, 4)))
    return server


def graph(extra: dict, model: list, *, steps: int = 2) -> dict:
    """A prompt as the first version of the pack saved it: every input that its nodes had, and no other."""
    return {
        "3": {"class_type": "FPSTestConditioning", "inputs": {"noise_seed": 1, "tokens": 512}},
        "5": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 128, "height": 96, "length": 9, "batch_size": 1},
        },
        "6": {
            "class_type": "KSampler",
            "inputs": {
                "model": model, "seed": 5, "steps": steps, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
                "positive": ["3", 0], "negative": ["3", 0], "latent_image": ["5", 0], "denoise": 1.0,
            },
        },
        "8": {"class_type": "FPSAttentionReport", "inputs": {"latent": ["6", 0], "model": model}},
    } | extra  # fmt: skip


def loader(name: str, node: str = "UNETLoader") -> dict:
    key = "unet_name" if node == "UNETLoader" else "model_name"
    return {"class_type": node, "inputs": {key: name, "weight_dtype": "default"}}


def text_of(server, api: dict) -> str:
    return server.prompt(api)["outputs"]["8"]["text"][0]


def apply(**inputs: object) -> dict:
    return {"class_type": "FPSAttentionApply", "inputs": {"model": ["1", 0], "backend": "auto"} | inputs}


def test_a_file_for_another_tile_runs_and_says_so(ready):
    text = text_of(ready, graph({"1": loader("trained.safetensors", "FPSAttentionLoadWan")}, ["1", 0]))
    assert "(trained 5x3x4)" in text and "6/0" not in text and "3/0" in text


def test_prompts_of_the_first_version_run(ready):
    """Every node with the inputs that it had then: widgets that came later take their defaults."""
    extra = {
        "1": loader("plain.safetensors"),
        "9": {"class_type": "FPSAttentionSchedule", "inputs": {"preset": "custom", "schedule": "0.00 bf16 - 1 1 1"}},
        "10": apply(schedule=["9", 0]),
    }
    assert "bf16" in text_of(ready, graph(extra, ["10", 0]))
    extra = {"1": loader("trained.safetensors", "FPSAttentionLoadWan"), "10": apply()}
    assert "schedule from the model file" in text_of(ready, graph(extra, ["10", 0]))


def test_a_linked_text_reaches_the_schedule_node(ready):
    extra = {
        "1": loader("plain.safetensors"),
        "11": {"class_type": "PrimitiveString", "inputs": {"value": "0.00 bf16 - 1 1 1"}},
        "9": {"class_type": "FPSAttentionSchedule", "inputs": {"preset": "custom", "schedule": ["11", 0]}},
        "10": apply(schedule=["9", 0]),
    }
    assert "bf16" in text_of(ready, graph(extra, ["10", 0]))


BAD = "0.5 bf16 - 1 -1 1\n0.00 dense"
BAD_SENTENCE = "line 1, column 14: the extent -1 is not positive; write at least 1, or all."


@pytest.mark.parametrize("node", ["FPSAttentionSchedule", "FPSAttentionApply", "FPSAttentionPreview"])
def test_a_bad_linked_text_fails_with_one_sentence(ready, node):
    """What the page and the log then show: our sentence alone, of our error, and no other error behind it."""
    inputs = {"schedule": ["11", 0]}
    if node == "FPSAttentionSchedule":
        extra = {"9": {"class_type": node, "inputs": {"preset": "custom"} | inputs}, "10": apply(schedule=["9", 0])}
    elif node == "FPSAttentionApply":
        extra = {"10": apply(**inputs)}
    else:
        size = {"width": 128, "height": 96, "frames": 9, "steps": 4, "shift": 5.0}
        extra = {"10": apply(), "12": {"class_type": node, "inputs": size | inputs}}
    extra |= {"1": loader("plain.safetensors"), "11": {"class_type": "PrimitiveString", "inputs": {"value": BAD}}}
    logged = len(ready.log())
    with pytest.raises(ComfyHostError) as failed:
        ready.prompt(graph(extra, ["10", 0]))
    assert str(failed.value) == f"{node}: {BAD_SENTENCE}"
    (entry,) = ready.get("/history?max_items=1").values()
    (error,) = [message for kind, message in entry["status"]["messages"] if kind == "execution_error"]
    assert error["node_type"] == node and error["exception_message"].strip() == BAD_SENTENCE
    assert error["exception_type"].endswith("kernels.schedule.ScheduleError")
    # The host logs the traceback of every node that raises: there is one, and its last line is the sentence.
    log = ready.log()[logged:]
    assert log.count("Traceback (most recent call last)") == 1
    (last,) = [line for line in log.splitlines() if BAD_SENTENCE in line and "!!!" not in line]
    assert last.endswith(f"ScheduleError: {BAD_SENTENCE}")


def test_two_of_our_nodes_in_a_row_say_who_wins(ready):
    extra = {
        "1": loader("plain.safetensors"),
        "9": apply(schedule="0.00 fp8 x1 all all all"),
        "10": apply(model=["9", 0], schedule="0.00 bf16 - 1 1 1"),
    }
    text = text_of(ready, graph(extra, ["10", 0]))
    assert "this later node replaces that patch" in text and "fp8" not in text.split("Run 1")[1].split("nothing")[0]
    assert "this later node replaces that patch" in ready.log()


def test_a_cancelled_run_and_the_next(ready):
    """Cancelled from the page while it samples: the next prompt is right, and its report is its own."""
    extra = {"1": loader("plain.safetensors"), "10": apply(schedule="0.00 bf16 - 1 1 1")}
    expected = text_of(ready, graph(extra, ["10", 0]))
    long = graph(extra, ["10", 0], steps=500)
    prompt_id = ready.post("/prompt", {"prompt": long, "client_id": uuid.uuid4().hex})["prompt_id"]
    time.sleep(1.5)
    ready.post("/interrupt", {})
    deadline = time.monotonic() + 60
    while prompt_id not in ready.get("/history") and time.monotonic() < deadline:
        time.sleep(0.1)
    status = ready.get(f"/history/{prompt_id}")[prompt_id]["status"]
    assert any(kind == "execution_interrupted" for kind, _ in status["messages"]), json.dumps(status)[:500]
    again = graph(extra, ["10", 0])
    again["6"]["inputs"]["seed"] = 6
    text = text_of(ready, again)
    assert "Run 1" in text and "Run 2" not in text and "stopped" not in text
    assert text.splitlines()[:2] == expected.splitlines()[:2]
