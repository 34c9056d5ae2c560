"""The memory plan against what a step really holds: fake tensors at full size, real ones of a small model."""

from __future__ import annotations

import pytest
import torch
from fpsattention.kernels.grid import TokenGrid
from fpsattention.training.assemble import assemble
from fpsattention.training.config import LoraSection
from fpsattention.training.distributed import World, open_world
from fpsattention.training.memory import MOMENTS, copied_bytes, plan_memory, saved_bytes
from fpsattention.training.memory_constants import CUDA, OUTSIDE, UNFUSED
from fpsattention.training.memory_measure import Case, Live, block_cost, measure, outside_cost
from fpsattention.training.model import random_model
from fpsattention.training.names import WanShape
from fpsattention.training.step import plan_step, train_step


@pytest.mark.parametrize(
    ("dtype", "trained", "recompute", "fused"),
    [
        ("bf16", "all", "attention", True),
        ("bf16", "lora", "full", True),
        ("fp32", "all", "none", True),
        pytest.param("bf16", "all", "full", True, marks=pytest.mark.slow),
        pytest.param("bf16", "lora", "attention", True, marks=pytest.mark.slow),
        pytest.param("bf16", "all", "full", False, marks=pytest.mark.slow),
        pytest.param("fp32", "all", "full", False, marks=pytest.mark.slow),
    ],
)
def test_constants_are_what_is_measured(dtype, trained, recompute, fused):
    lora = LoraSection() if trained == "lora" else None
    table = CUDA if fused else UNFUSED
    assert block_cost(dtype, lora, recompute, fused) == table[dtype, trained, recompute]


def test_what_lies_outside_the_blocks_is_what_is_measured():
    assert outside_cost("bf16") == pytest.approx(OUTSIDE["all"], abs=0.05)
    assert outside_cost("bf16", lora=LoraSection()) == pytest.approx(OUTSIDE["lora"], abs=0.05)


@pytest.mark.parametrize(
    ("dtype", "recompute", "lora"),
    [
        ("bf16", "attention", False),
        ("bf16", "full", True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("bf16", "full", False), ("fp32", "attention", True), ("bf16", "none", False))
        ),
    ],
)
def test_full_size_within_five_percent(make_config, dtype, recompute, lora):
    grid = TokenGrid(21, 30, 52)
    shape = WanShape(1536, 8960, 4)
    case = Case(shape.dim, shape.ffn_dim, shape.layers, (21, 30, 52), dtype=dtype, recompute=recompute,
                lora=LoraSection() if lora else None)  # fmt: skip
    config = make_config(
        dtype=dtype, activation_checkpointing=recompute, optim__batch=1, attention__slots=64,
        attention__schedule="0 fp8 x1 all 4 4", **({"lora": {}} if lora else {}),
    )  # fmt: skip
    found = measure(case)
    plan = plan_memory(config, shape, grid)
    assumed = {"optimizer", "average", *plan.assumed}
    predicted = sum(size for name, size in plan.gpu.items() if name not in assumed)
    assert plan.moment in MOMENTS[:2]
    assert predicted == pytest.approx(found.weights + found.backward_peak, rel=0.05)


def test_a_state_written_in_the_background_is_copied_first(make_config):
    shape, config = WanShape(256, 1024, 3, text_dim=16), make_config(ema={"decay": 0.9})
    whole, _ = saved_bytes(config, shape)
    assert copied_bytes(config, shape) == whole
    assert whole / 4 <= copied_bytes(config, shape, world=4) <= 1.01 * whole / 4  # rows are dealt out whole
    assert copied_bytes(make_config(checkpoint__background=False), shape) == 0


def sample(number: int, size: tuple[int, int, int]) -> dict:
    """A random latent (16, T, H, W) with a text of one token."""
    generator = torch.Generator().manual_seed(number)
    return {"latent": torch.randn(16, *size, generator=generator), "text": torch.zeros(1, 16), "name": str(number)}


def train(run, samples: list[dict]) -> None:
    """Take one step."""
    places, passes = plan_step(run, run.step, samples)
    train_step(run, places, passes, [samples[place.index] for one in passes for place in one.places])


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": {"decay": 0.9}},
        {"activation_checkpointing": "full", "dtype": "bf16"},
        {"activation_checkpointing": "attention", "optim__global_batch": 4},
        {"lora": {"rank": 8}, "dtype": "bf16"},
        {"optim__name": "adamw-8bit", "activation_checkpointing": "full"},
        {"loss__teacher": 0.5, "activation_checkpointing": "full", "dtype": "bf16"},
    ],
    ids=lambda changes: ", ".join(f"{k}={v}" for k, v in changes.items()),
)
def test_a_real_step_of_a_small_model_within_ten_percent(make_config, changes):
    grid, shape = TokenGrid(4, 16, 16), WanShape(256, 1024, 3, text_dim=16)
    config = make_config(
        model__dim=256, model__ffn_dim=1024, model__layers=3, optim__batch=1, data__height=256, data__width=256,
        data__frames=13, attention__schedule="0 fp8 x1 all 8 8", **changes,
    )  # fmt: skip
    samples = [sample(i, (4, 32, 32)) for i in range(4)]
    live = Live()
    with live:
        model = random_model(shape, 0)
        live.now = 0
        live._alive.clear()
        live.add(model.parameters())
        run = assemble(config, World(), torch.device("cpu"), model)
        for _ in range(2):
            live.peak = live.now
            train(run, samples)
    predicted = plan_memory(config, shape, grid, cuda=False, text=1)
    # The reference's tile copies are made inside one op, where nothing looks.
    assert predicted.total == pytest.approx(live.peak, rel=0.1), predicted


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_an_offloaded_step_is_bounded_closely(make_config, lora):
    """On a CPU both memories are one: what is gathered and computed with, and what waits."""
    grid, shape = TokenGrid(2, 16, 16), WanShape(512, 2048, 4, text_dim=16)
    config = make_config(
        model__dim=512, model__ffn_dim=2048, model__layers=4, dtype="bf16", activation_checkpointing="full",
        optim__batch=1, parallel__offload=True, data__height=256, data__width=256, data__frames=5,
        attention__schedule="0 fp8 x1 all 8 8", **({"lora": {"rank": 8}} if lora else {}),
    )  # fmt: skip
    world = open_world("cpu", config.parallel)
    try:
        live = Live(resizes=True)
        with live:
            model = random_model(shape, 0)
            live._alive.clear()
            live.add(model.parameters())
            run = assemble(config, world, torch.device("cpu"), model)
            del model
            for _ in range(2):
                live.recount()
                live.peak = live.now
                train(run, [sample(i, (2, 32, 32)) for i in range(4)])
    finally:
        world.close()
    plan = plan_memory(config, shape, grid, cuda=False, text=1)
    assert 0.95 * live.peak <= plan.total + sum(plan.cpu.values()) <= 1.2 * live.peak
