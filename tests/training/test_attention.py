"""The attention processor against diffusers' own, the step state, and activation checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from fpsattention.kernels.schedule import Schedule
from fpsattention.training.attention import attention_state
from fpsattention.training.model import random_model
from fpsattention.training.names import WanShape
from fpsattention.training.sparse import DENSE, SparseAttention, latent_grid

LATENT = (2, 16, 3, 8, 12)


def sparse(text: str) -> SparseAttention:
    return SparseAttention(Schedule.parse(text), slots=16)


@pytest.fixture(scope="module")
def model():
    model = random_model(WanShape(dim=256, ffn_dim=64, layers=2, text_dim=16), seed=0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    return model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(LATENT, generator=generator)
    return x, torch.tensor([700.0, 700.0]), torch.zeros(2, 1, 16)


def run(model, inputs, attention, sigma=0.7):
    with attention_state(model).step(attention, sigma, LATENT):
        return model(*inputs, return_dict=False)[0]


@torch.no_grad()
def test_dense_step_is_bit_equal_to_diffusers(model, inputs):
    untouched = copy.deepcopy(model)
    for block in untouched.blocks:
        block.attn1.set_processor(type(block.attn2.processor)())
    assert torch.equal(run(model, inputs, DENSE), untouched(*inputs, return_dict=False)[0])


@torch.no_grad()
@pytest.mark.parametrize("window", ["all all all", "3 4 6"])
def test_all_covering_window_is_dense(model, inputs, window):
    dense = run(model, inputs, DENSE)
    full = run(model, inputs, sparse(f"0 bf16 - {window}"))
    assert (full - dense).abs().max() <= 1e-5 * dense.abs().max()


@torch.no_grad()
def test_narrow_window_changes_the_output_and_phases_differ(model, inputs):
    attention = sparse("0.8 fp8 x1 all 2 2\n0.5 dense\n0 fp8 x1 all 4 2")
    dense, early, late = (run(model, inputs, attention, sigma) for sigma in (0.6, 0.9, 0.1))
    assert torch.equal(dense, run(model, inputs, DENSE))
    assert not torch.allclose(early, dense, atol=1e-4) and not torch.allclose(late, early, atol=1e-4)


@torch.no_grad()
def test_any_number_of_zero_text_tokens_is_the_same(model, inputs):
    x, t, _ = inputs
    one, many = (run(model, (x, t, torch.zeros(2, n, 16)), DENSE) for n in (1, 64))
    assert torch.allclose(one, many, atol=1e-6)


def test_checkpointing_gives_the_same_gradients(model, inputs):
    attention = sparse("0.5 fp8 x1 all 2 2\n0 dense")
    gradients = []
    for checkpointing in (False, True):
        twin = copy.deepcopy(model).train()
        if checkpointing:
            twin.enable_gradient_checkpointing()
        with attention_state(twin).step(attention, 0.7, LATENT):
            twin(*inputs, return_dict=False)[0].square().mean().backward()
        gradients.append({name: p.grad for name, p in twin.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_state_refuses_a_second_step_and_a_call_outside(model, inputs):
    state = attention_state(model)
    with state.step(DENSE, 0.7, LATENT):
        with pytest.raises(RuntimeError, match=r"sigma 0.7 is still open"), state.step(DENSE, 0.3, LATENT):
            pass
        model(*inputs, return_dict=False)  # the open step is unharmed
    with pytest.raises(RuntimeError, match="outside an attention step"):
        model(*inputs, return_dict=False)
    with pytest.raises(ValueError), state.step(DENSE, 0.7, LATENT):
        raise ValueError
    with state.step(DENSE, 0.3, LATENT):
        pass


def test_recompute_after_the_step_fails_instead_of_using_another_plan(model, inputs):
    twin = copy.deepcopy(model).train()
    twin.enable_gradient_checkpointing()
    with attention_state(twin).step(sparse("0 fp8 x1 all 2 2"), 0.7, LATENT):
        loss = twin(*inputs, return_dict=False)[0].square().mean()
    with pytest.raises(RuntimeError, match="outside an attention step"):
        loss.backward()


def test_copies_have_states_of_their_own(model, inputs):
    attention_state(model)
    twin = copy.deepcopy(model)
    assert attention_state(twin) is not attention_state(model)
    assert all(block.attn1.processor.state is attention_state(twin) for block in twin.blocks)


def test_grid_of_latents():
    grid = latent_grid((16, 8, 16, 24))
    assert (grid.t, grid.h, grid.w) == (8, 8, 12)
    with pytest.raises(ValueError, match="multiples of 16"):
        latent_grid((16, 8, 15, 24))


@torch.no_grad()
def test_compiled_blocks_have_no_break_and_equal_output(model, inputs):
    """``fullgraph`` raises at the first graph break; a second phase compiles once more, a known one does not."""
    attention = sparse("0.5 fp8 x1 all 2 2\n0 bf16 - all 4 2")
    expected = {sigma: run(model, inputs, attention, sigma) for sigma in (0.7, 0.2)}
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    for block in twin.blocks:
        block.compile(fullgraph=True, backend=backend)
    for sigma, graphs in ((0.7, 1), (0.2, 2), (0.7, 2)):
        assert torch.equal(run(twin, inputs, attention, sigma), expected[sigma])
        assert len(compiled) == graphs
