"""Image-to-video and first-last-frame models: built at random, trained a step, and refused without their image."""

from __future__ import annotations

import copy

import pytest
import torch
from fpsattention.training.attention import attention_state
from fpsattention.training.config_file import check_config
from fpsattention.training.model import keep_full_precision, model_shape, random_model, starting_model
from fpsattention.training.names import WanShape, planned_shape
from fpsattention.training.sparse import DENSE
from fpsattention.training.step import model_inputs

from .wan_files import SMALL

LATENT = (3, 8, 8)


def inputs(shape: WanShape, batch: int = 2, text: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, shape.in_channels, *LATENT, generator=generator)
    texts = torch.randn(batch, text, shape.text_dim, generator=generator)
    image = torch.randn(batch, shape.image_tokens, shape.image_dim, generator=generator)
    return x, torch.tensor([700.0, 300.0])[:batch], texts, image


def small(kind: str):
    model = random_model(SMALL[kind], 0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    return model


@pytest.mark.parametrize("kind", ["t2v", "i2v", "flf"])
def test_a_random_model_is_of_the_kind_that_the_configuration_names(table, kind):
    table["model"]["kind"] = kind
    section = check_config(table, "test").model
    assert planned_shape(section) == SMALL[kind]
    assert model_shape(starting_model(section, 0)) == SMALL[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["i2v", "flf"])
def test_a_step_trains_every_parameter(kind, dtype):
    model, shape = small(kind), SMALL[kind]
    keep_full_precision(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        arguments = inputs(shape)
        with (
            attention_state(model).step(DENSE, 0.5, LATENT),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            loss = model(*arguments, return_dict=False)[0].float().square().mean()
            loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        # Keys' biases shift all scores of a query alike: their gradient is zero but for rounding.
        still = [
            n for n, p in model.named_parameters() if not p.grad.any() and not n.endswith(("to_k.bias", "k_proj.bias"))
        ]
        assert still == []
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("kind", ["i2v", "flf"])
def test_the_image_matters_and_the_text_may_have_any_length(kind):
    model, shape = small(kind), SMALL[kind]
    x, t, text, image = inputs(shape, batch=1)
    with torch.no_grad():
        first = model(x, t, text, image, return_dict=False)[0]
        other = model(x, t, text, image.flip(1), return_dict=False)[0]
        twice = model(x, t, torch.cat([text, text], 1), image, return_dict=False)[0]
        changed = model(x, t, text, image.roll(1, -1), return_dict=False)[0]
    assert not torch.allclose(first, changed, atol=1e-3)
    # Tokens of one image are a set; those of two have positions.
    assert torch.allclose(first, other, atol=1e-5) == (kind == "i2v")
    assert torch.allclose(first, twice, atol=1e-5)  # every token twice: the same softmax


def test_a_dropped_text_shares_a_batch_with_one_of_any_length():
    model, shape = small("i2v"), SMALL["i2v"]
    x, t, text, image = inputs(shape, batch=2)
    sigma = t.float() / 1000
    latent, condition = x[:, :16], x[:, 16:]
    none = torch.zeros(1, text.shape[-1])
    mixed = model_inputs(latent, sigma, [text[0], none], condition, image)
    alone = model_inputs(latent[1:], sigma[1:], [none], condition[1:], image[1:])
    with torch.no_grad():
        both, second = (model(*given, return_dict=False)[0] for given in (mixed, alone))
    assert torch.allclose(both[1:], second, atol=1e-5)


def test_it_is_diffusers_own_attention_where_diffusers_can_do_it():
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    model = small("i2v")
    plain = copy.deepcopy(model)
    for block in plain.blocks:
        block.attn2.set_processor(WanAttnProcessor())
    plain._forward_pre_hooks.clear()
    x, t, text, image = inputs(SMALL["i2v"], text=512)
    with torch.no_grad():
        ours, theirs = (m(x, t, text, image, return_dict=False)[0] for m in (model, plain))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("kind", "tokens"), [("i2v", 257), ("flf", 514)])
def test_a_missing_or_wrong_image_is_a_sentence(kind, tokens):
    model, shape = small(kind), SMALL[kind]
    x, t, text, image = inputs(shape)
    with pytest.raises(ValueError, match=f"needs the CLIP feature of {tokens} x 1280 with every sample, but the data"):
        model(x, t, text, return_dict=False)
    with pytest.raises(ValueError, match=r"but was given \(2, 100, 1280\) for 2 samples"):
        model(x, t, text, encoder_hidden_states_image=image[:, :100], return_dict=False)


def test_a_copy_computes_with_its_own_weights():
    model = small("t2v")
    keep_full_precision(model)
    twin = copy.deepcopy(model)
    arguments = inputs(SMALL["t2v"])[:3]
    with torch.no_grad():
        before = twin(*arguments, return_dict=False)[0]
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(twin(*arguments, return_dict=False)[0], before)


def test_full_precision_layers_compute_in_float32_under_autocast():
    model = small("i2v")
    keep_full_precision(model)
    keep_full_precision(model)
    seen = {}
    for name in ("norm_q", "norm_k", "norm_added_k"):
        norm = getattr(model.blocks[0].attn2, name)
        norm.register_forward_hook(lambda _m, _a, out, name=name: seen.__setitem__(name, out.dtype))
    model.condition_embedder.time_embedder.register_forward_hook(
        lambda _m, _a, out: seen.__setitem__("time", out.dtype)
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(*inputs(SMALL["i2v"]), return_dict=False)
    assert set(seen.values()) == {torch.float32} and len(seen) == 4
