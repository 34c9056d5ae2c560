"""The model patch on the fake host: phases, exactness, reasons, bookkeeping."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from fpsattention.kernels.attention import BackendError
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.plan import _kept
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes import around, patch
from fpsattention.nodes.dense_blocks import DenseBlocksError
from fpsattention.nodes.model_call import step_index
from fpsattention.nodes.patch import PatchError, apply_patch
from fpsattention.nodes.settings import KEY, Settings, choose_settings

LAYERS = 3
THREE = "0.90 fp8 x2 all 1 1\n0.50 bf16 - all 60% 60%\n0.00 dense"


def patched(host, text: str, model=None, **settings):
    return apply_patch(model or host.Patcher(host.WanModel()), Settings(Schedule.parse(text), "the test", **settings))


def steps(model) -> list:
    (run,) = model.get_attachment(KEY).recorder.runs
    return list(run.steps.values())


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_dense_changes_nothing(host):
    plain = host.run(host.Patcher(host.WanModel()), [1.0, 0.5])
    for text in ("0.00 dense", "0.10 dense\n0.00 fp8 x1 all 1 1"):
        out = host.run(patched(host, text), [1.0, 0.5])
        assert all(torch.equal(a, b) for a, b in zip(out, plain))


def test_full_window_equals_dense(host):
    (plain,) = host.run(host.Patcher(host.WanModel()), [0.7])
    (out,) = host.run(patched(host, "0.00 bf16 - 99 99 99"), [0.7])
    assert close(out, plain) < 1e-5
    (sparse,) = host.run(patched(host, "0.00 bf16 - all 1 1"), [0.7])
    assert close(sparse, plain) > 1e-4


def test_phases_follow_sigma(host):
    model = patched(host, THREE)
    host.run(model, [1.0, 0.9, 0.7, 0.2])
    found = steps(model)
    assert [s.phase for s in found] == [0, 0, 1, 2]
    assert [s.index for s in found] == [0, 1, 2, 3]
    assert [(s.sparse, s.dense) for s in found] == [(3, 0), (3, 0), (3, 0), (0, 3)]
    assert found[0].density < found[2].density < found[3].density == 1.0
    assert [s.backend for s in found] == ["reference"] * 3 + [""]
    assert all(s.reasons == {} for s in found)


def test_the_options_are_left_as_they_were(host):
    model = patched(host, "0.00 fp8 x1 all 1 1")
    seen = []

    def outer(executor, *args, **kwargs):
        before = set(args[5])
        result = executor(*args, **kwargs)
        seen.append(set(args[5]) - before)
        return result

    outermost = model.clone()
    ours = outermost.wrappers["diffusion_model"]
    outermost.wrappers["diffusion_model"] = {"outer": [outer], **ours}
    host.run(outermost, [1.0])
    assert seen == [{"grid_sizes", "block_index"}]


def test_odd_sizes_and_extra_frames(host):
    model = patched(host, "0.00 bf16 - all 1 1")
    host.run(model, [1.0], size=(2, 13, 17), time_dim_concat=torch.zeros(1, 16, 2, 13, 17))
    assert steps(model)[0].grid == (4, 7, 9)
    assert (steps(model)[0].sparse, steps(model)[0].dense) == (LAYERS, 0)


def test_reference_image_in_front(host):
    wan = host.WanModel()
    wan.ref_conv = object()
    reference = torch.zeros(1, 16, 24, 32)
    plain = host.run(host.Patcher(wan), [1.0], reference_latent=reference)
    model = patched(host, "0.00 bf16 - 99 99 99", host.Patcher(wan))
    out = host.run(model, [1.0], reference_latent=reference)
    assert close(out[0], plain[0]) < 1e-5
    assert steps(model)[0].prefix == 192 and steps(model)[0].sparse == LAYERS


def test_unexpected_tokens_stay_dense_with_a_reason(host):
    """A known class whose sequence is longer than its latent says."""
    wan = host.WanModel()
    original = wan._forward

    def longer(x, *args, **kwargs):
        return original(torch.cat([x, x[:, :, :1]], 2), *args, **kwargs)

    wan._forward = longer
    model = patched(host, "0.00 fp8 x1 all 1 1", host.Patcher(wan))
    assert torch.equal(host.run(model, [1.0])[0], host.run(host.Patcher(wan), [1.0])[0])
    (step,) = steps(model)
    assert step.sparse == 0 and step.density == 1.0
    assert list(step.reasons) == ["the sequence has 768 tokens where 576 were expected from the latent"]


def test_an_unknown_class_stays_dense_only_with_extra_tokens(host):
    class NewerWan(host.WanModel):
        pass

    model = patched(host, "0.00 fp8 x1 all 1 1", host.Patcher(NewerWan()))
    host.run(model, [1.0])
    assert steps(model)[0].sparse == LAYERS


@pytest.mark.parametrize("other, runs", [(0.2, "dense"), (0.8, "sparse")])
def test_a_batch_of_several_sigmas_must_share_a_phase(host, other, runs):
    model = patched(host, "0.50 fp8 x1 all 1 1\n0.00 dense")
    wan = model.model.diffusion_model
    forward = wan.forward

    def mixed(x, timestep, context, clip_fea, concat, options, **kwargs):
        options["sigmas"] = torch.tensor([1.0, other])
        return forward(x, timestep, context, clip_fea, concat, options, **kwargs)

    wan.forward = mixed
    host.run(model, [1.0], batch=2)
    (step,) = steps(model)
    assert (step.sparse, step.dense) == ((LAYERS, 0) if runs == "sparse" else (0, LAYERS))
    assert list(step.reasons) == ([] if runs == "sparse" else ["the batch mixes sigmas of different phases"])


def test_without_sigmas_everything_is_dense(host):
    model = patched(host, "0.00 fp8 x1 all 1 1")
    wan = model.model.diffusion_model
    forward = wan.forward

    def silent(x, timestep, context, clip_fea, concat, options, **kwargs):
        del options["sigmas"]
        return forward(x, timestep, context, clip_fea, concat, options, **kwargs)

    wan.forward = silent
    host.run(model, [1.0])
    (run,) = model.get_attachment(KEY).recorder.runs
    assert any("does not say its sigma" in note for note in run.notes)


def test_an_error_inside_leaves_no_open_run(host):
    model = patched(host, "0.00 fp8 x1 all 1 1")

    def failing(args, extra):
        raise RuntimeError("stop")

    model.set_model_patch_replace(failing, "dit", "double_block", 1)
    with pytest.raises(RuntimeError, match="stop"):
        host.run(model, [1.0])
    assert model.get_attachment(KEY).recorder.runs[0].finished


def test_not_wan_is_refused(host):
    class Flux:
        pass

    with pytest.raises(PatchError, match="works on Wan models, this one is Inner"):
        patched(host, "0.00 dense", host.Patcher(Flux()))


def test_named_backend_is_refused_before_sampling(host):
    with pytest.raises(BackendError, match=r"triton-fp8, .*triton-bf16: .*; reference: can run"):
        patched(host, "0.00 fp8 x1 all 1 1", backend="triton-fp8")
    patched(host, "0.00 dense", backend="triton-fp8")


def test_head_dimension_that_no_backend_takes_is_refused(host):
    wan = host.WanModel()
    wan.dim = 2 * 96
    with pytest.raises(BackendError, match="head dimension of 64 or 128, not 96"):
        patched(host, "0.00 fp8 x1 all 1 1", host.Patcher(wan))


def test_the_incoming_model_is_untouched(host):
    model = host.Patcher(host.WanModel())
    patched(host, "0.00 fp8 x1 all 1 1", model)
    assert model.wrappers == {} and model.callbacks == {} and model.attachments == {}
    assert model.model_options == {"transformer_options": {}}


def test_clones_share_the_recorder(host):
    model = patched(host, "0.00 fp8 x1 all 1 1")
    host.run(model.clone(), [1.0])
    assert len(model.get_attachment(KEY).recorder.runs) == 1


def test_file_tile_is_used(host):
    header = Header(Schedule.parse("0.00 fp8 x1 all 1 1"), slots=48, tile=(3, 4, 4))
    model = apply_patch(host.Patcher(host.WanModel()), choose_settings(header, None, "auto"))
    host.run(model, [1.0])
    assert steps(model)[0].tile == (3, 4, 4)


def test_constants_are_strings():
    assert (around.DIFFUSION_MODEL, around.OVERRIDE) == ("diffusion_model", "optimized_attention_override")
    assert (patch.ON_PRE_RUN, patch.ON_CLEANUP) == ("on_pre_run", "on_cleanup")


@pytest.mark.parametrize(
    "sigmas, sigma, index",
    [
        ([1.0, 0.8, 0.5, 0.0], 1.0, 0),
        ([1.0, 0.8, 0.5, 0.0], 0.8000001, 1),
        ([1.0, 0.8, 0.5, 0.0], 0.65, 1),
        ([1.0, 0.8, 0.5, 0.0], 0.5, 2),
        ([1.0, 0.8, 0.5, 0.001], 0.3, 2),
        ([0.8, 0.5, 0.0], 0.9, 0),
        ([], 0.5, None),
    ],
)
def test_step_index(sigmas, sigma, index):
    assert step_index(sigmas, sigma) == index


def test_a_gpu_without_a_fast_backend_stays_dense_and_says_so(host, monkeypatch):
    monkeypatch.setattr("fpsattention.nodes.model_call.choose_backend", lambda *_: (None, "no fast backend runs here"))
    model = patched(host, "0.00 fp8 x1 all 1 1")
    assert torch.equal(host.run(model, [1.0])[0], host.run(host.Patcher(host.WanModel()), [1.0])[0])
    assert list(steps(model)[0].reasons) == ["no fast backend runs here"]


def test_a_sigma_that_is_no_number_stays_dense_with_a_reason(host):
    model = patched(host, "0.00 fp8 x1 all 1 1")
    assert torch.equal(host.run(model, [float("nan")])[0], host.run(host.Patcher(host.WanModel()), [1.0])[0])
    assert list(steps(model)[0].reasons) == ["the sampler's sigma is not a number"]


def test_sigmas_outside_of_one_and_zero_take_the_first_and_the_last_phase(host):
    model = patched(host, THREE)
    host.run(model, [7.5, -0.5])
    assert [step.phase for step in steps(model)] == [0, 2]


def test_a_later_patch_says_that_it_replaces_an_earlier_one(host, caplog):
    first = patched(host, "0.00 fp8 x1 all 1 1")
    second = patched(host, "0.00 bf16 - all 1 1", first)
    (note,) = second.get_attachment(KEY).settings.notes
    assert "later node replaces that patch" in note and note in caplog.text
    assert patched(host, "0.00 bf16 - all 1 1", second).get_attachment(KEY).settings.notes == ()
    host.run(second, [1.0])
    assert [len(m.get_attachment(KEY).recorder.runs) for m in (first, second)] == [0, 1]


def test_plans_are_built_before_the_first_step(host):
    model = patched(host, THREE)
    host.run(model, [1.0], sample_sigmas=[1.0, 0.7, 0.2, 0.0])
    _kept.clear()
    host.run(model, [1.0], sample_sigmas=[1.0, 0.7, 0.2, 0.0])
    assert len(_kept) == 2, "both sparse phases, before any of their steps"


def test_blocks_are_timed_in_dense_and_in_sparse_steps(host):
    model = patched(host, THREE)
    host.run(model, [1.0, 0.7, 0.2])
    for step in steps(model):
        assert len(step.blocks) == LAYERS and min(step.blocks) > 0 and sum(step.blocks) <= step.seconds


def test_an_error_before_the_run_is_not_kept(host):
    """A node that samples again in its handler: the error's frames, and their tensors, go with the error."""
    model = patched(host, "0.00 dense")
    seen = []

    class Held:
        pass

    def attempt():
        held = Held()
        seen.append(weakref.ref(held))
        raise RuntimeError("CUDA out of memory")

    try:
        attempt()
    except RuntimeError:
        host.run(model, [1.0])
    gc.collect()
    assert seen[0]() is None
    assert model.get_attachment(KEY).recorder.runs[-1].stopped is None, "it was not this run's error"


def test_a_finished_run_keeps_no_plans(host):
    model = patched(host, "0.00 bf16 - all 1 1")
    host.run(model, [1.0], size=(2, 24, 32))
    (run,) = model.get_attachment(KEY).recorder.runs
    assert run.steps and not run.built


def test_an_error_tells_why_the_run_stopped(host):
    model = patched(host, "0.00 fp8 x1 all 1 1")
    inner = model.model_options["transformer_options"]["patches_replace"]["dit"][("double_block", 1)]

    def full(args, extra):
        def block(_):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        return inner(args, {"original_block": block})

    failing = model.clone()
    failing.set_model_patch_replace(full, "dit", "double_block", 1)
    with pytest.raises(torch.OutOfMemoryError):
        host.run(failing, [1.0])
    run = model.get_attachment(KEY).recorder.runs[-1]
    assert run.finished and run.stopped == "out of memory" and run.steps[1.0].reasons == {}
    host.run(model, [1.0])
    assert model.get_attachment(KEY).recorder.runs[-1].stopped is None


def test_chosen_blocks_stay_dense(host):
    """They are counted without a reason; all of them chosen is the host's own result."""
    text = "0.00 bf16 - all 1 1"
    (plain,) = host.run(host.Patcher(host.WanModel()), [0.7])
    (sparse,) = host.run(patched(host, text), [0.7])
    model = patched(host, text, dense_blocks=frozenset({0, 2}))
    (out,) = host.run(model, [0.7])
    (step,) = steps(model)
    assert (step.sparse, step.dense, step.reasons) == (1, 2, {}) and step.planned_density < step.density < 1
    assert close(out, plain) > 0 and close(out, sparse) > 0
    every = patched(host, text, dense_blocks=frozenset(range(LAYERS)))
    assert torch.equal(host.run(every, [0.7])[0], plain) and steps(every)[0].density == 1.0


def test_chosen_blocks_must_exist(host):
    with pytest.raises(DenseBlocksError, match="block 3, but this model has 3 blocks, 0 to 2"):
        patched(host, "0.00 dense", dense_blocks=frozenset({3}))


@pytest.mark.parametrize("blocks, says", [({1}, True), ({0}, False)])
def test_of_two_nodes_with_other_dense_blocks_the_later_wins_and_says_so(host, blocks, says):
    text = "0.00 bf16 - all 1 1"
    earlier = patched(host, text, dense_blocks=frozenset({0}))
    model = patched(host, text, model=earlier, dense_blocks=frozenset(blocks))
    host.run(model, [0.7])
    (run,) = model.get_attachment(KEY).recorder.runs
    found = [note for note in run.notes if "already patched" in note]
    assert (len(found) == 1) == says and all("blocks 0 always dense" in note for note in found)
    assert model.get_attachment(KEY).settings.dense_blocks == blocks
