"""The op: what torch demands of a custom op, compilation, checkpointing, backends, and errors in one sentence."""

from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch
from fpsattention.kernels.attention import (
    BACKENDS,
    BackendError,
    backends,
    choose_backend,
    chosen_backends,
    force_backend,
    forget_backends,
    fps_attention,
    make_spec,
    op,
    resolve_backend,
)
from fpsattention.kernels.attention import dispatch as dispatch_module
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.plan import clear_plans
from torch.utils.checkpoint import checkpoint

from . import oracle

GRID = TokenGrid(2, 5, 7, prefix=3, suffix=2)
ROWS = ["bf16 - all 2 3", "fp8 x1 all 2 3", "fp8 token all all all"]


def arguments(plan, q, k, v):
    spec = make_spec(plan, plan.lists, "reference")
    return (q, k, v, *spec.tensors, *spec.scalars, "reference")


def scene(row, dtype=torch.float32, heads=2, batch=2, grad=True):
    plan = oracle.make_plan(row, GRID, heads, slots=16)
    q, k, v, out_grad = oracle.tensors(batch, GRID.tokens, heads, 64, dtype=dtype)
    return plan, [x.requires_grad_(grad) for x in (q, k, v)], out_grad


@pytest.mark.parametrize("row", ROWS)
def test_torch_accepts_both_ops(row):
    plan, inputs, grad = scene(row)
    torch.library.opcheck(op.attention_forward, arguments(plan, *inputs))
    inputs = [x.detach() for x in inputs]
    outputs = op.attention_forward(*arguments(plan, *inputs))
    q, k, v, *rest = arguments(plan, *inputs)
    torch.library.opcheck(op.attention_backward, (grad, q, k, v, *outputs, *rest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", ROWS[:2])
def test_compiled_and_eager_are_bit_equal(row, dtype):
    plan, inputs, grad = scene(row, dtype)

    def block(q, k, v):
        return fps_attention(q * 2, k, v, plan).sin()

    expected = block(*inputs)
    expected_grads = torch.autograd.grad(expected, inputs, grad)
    out = torch.compile(block, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(out, expected)
    for a, b in zip(torch.autograd.grad(out, inputs, grad), expected_grads):
        assert torch.equal(a, b)


@pytest.mark.parametrize("row", ROWS)
def test_checkpointing_is_bit_equal(row):
    plan, inputs, grad = scene(row)

    def block(q, k, v):
        return fps_attention(q.cos(), k, v, plan) * 2

    expected = block(*inputs)
    out = checkpoint(block, *inputs, use_reentrant=False)
    assert torch.equal(out, expected)
    for a, b in zip(torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)):
        assert torch.equal(a, b)


def test_only_the_output_is_differentiable():
    plan, inputs, _ = scene(ROWS[1])
    out, lse, rowmax = op.attention_forward(*arguments(plan, *inputs))
    assert out.requires_grad and not lse.requires_grad and not rowmax.requires_grad
    with torch.no_grad():
        assert not fps_attention(*inputs, plan).requires_grad


def test_a_plan_made_while_sampling_serves_training():
    clear_plans()
    with torch.inference_mode():
        plan, inputs, _ = scene(ROWS[1], grad=False)
        fps_attention(*inputs, plan)
    same, inputs, grad = scene(ROWS[1])
    assert same.lists.ids is scene(ROWS[1])[0].lists.ids
    fps_attention(*inputs, plan).backward(grad)
    assert inputs[0].grad.isfinite().all()


def test_the_default_dtype_does_not_reach_the_statistics():
    plan, inputs, _ = scene(ROWS[1], grad=False)
    torch.set_default_dtype(torch.bfloat16)
    try:
        _, lse, rowmax = op.attention_forward(*arguments(plan, *inputs))
    finally:
        torch.set_default_dtype(torch.float32)
    assert lse.dtype == rowmax.dtype == torch.float32


def sentence(message: str) -> str:
    assert message.endswith(".") and "\n" not in message
    return message


def test_tensors_that_do_not_fit_have_a_sentence():
    plan, (q, k, v), _ = scene(ROWS[1], grad=False)
    lists = dataclasses.replace(plan.lists, pattern_of_head=torch.zeros(3, 2).int())
    other_plan = oracle.with_lists(plan, lists)
    meta = torch.empty_like(q, device="meta")
    for call, names in (
        ((q[0], k[0], v[0], plan), [str(tuple(q[0].shape)), "(B, S, H, D)"]),
        ((q, k[:, 1:], v, plan), [str(tuple(q.shape)), str(tuple(k[:, 1:].shape))]),
        ((q, k, v[..., :32], plan), [str(tuple(v[..., :32].shape))]),
        ((q, k[:, :, :1], v[:, :, :1], plan), ["share one shape"]),
        ((q[:, 1:], k[:, 1:], v[:, 1:], plan), [f"{GRID.tokens - 1} tokens", str(GRID.tokens), "plan again"]),
        ((q[:, :, :1], k[:, :, :1], v[:, :, :1], plan), ["of 1", "of 2 heads", "plan again"]),
        ((q, k, v, other_plan), ["2 of 2", "for 3 samples", "plan again"]),
        ((q, k.bfloat16(), v, plan), ["one dtype", "torch.bfloat16"]),
        ((meta, meta, meta, plan), ["are on meta", "the plan is on cpu"]),
    ):
        with pytest.raises(ValueError) as caught:
            fps_attention(*call)
        for name in names:
            assert name in sentence(str(caught.value))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("ids", lambda x: x + 1000, "ids holds 1000 to 10"),
        ("ids", lambda x: x.long(), "ids is torch.int64"),
        ("ids", lambda x: x[:, 1:], "tiles"),
        ("ids", lambda x: x[..., :0], "needs a pattern and a place at least"),
        ("count", lambda x: x + 99, "count holds 1"),
        ("key_ids", lambda x: x - 1, "key_ids holds -1 to"),
        ("pattern_of_head", lambda x: x + 1, "pattern_of_head holds 1 to 1, allowed are 0 to 0"),
    ],
)
def test_damaged_lists_have_a_sentence(name, change, words):
    plan, (q, k, v), _ = scene(ROWS[1], grad=False)
    damaged = oracle.with_lists(plan, dataclasses.replace(plan.lists, **{name: change(getattr(plan.lists, name))}))
    with pytest.raises(ValueError, match="the plan's lists do not fit") as caught:
        fps_attention(q, k, v, damaged)
    assert words in sentence(str(caught.value))


def test_what_lies_behind_a_lists_count_is_never_read():
    plan, (q, k, v), _ = scene(ROWS[1], grad=False)
    lists = plan.lists
    assert (lists.count < lists.ids.shape[2]).any()
    filled = {}
    for name, counts in (("ids", lists.count), ("key_ids", lists.key_count)):
        ids = getattr(lists, name).clone()
        ids[torch.arange(ids.shape[2]) >= counts[..., None]] = -(2**31)
        filled[name] = ids
    other = oracle.with_lists(plan, dataclasses.replace(lists, **filled))
    assert torch.equal(fps_attention(q, k, v, other), fps_attention(q, k, v, plan))


@pytest.mark.parametrize(
    ("dim", "dtype", "reason"),
    [
        (96, torch.float32, "takes a head dimension of 64 or 128, not 96"),
        (64, torch.float64, "takes float32, bfloat16, float16, not float64"),
        (64, torch.int32, "not int32"),
    ],
)
def test_a_dimension_or_dtype_that_nothing_takes_names_every_backend(dim, dtype, reason):
    plan = scene(ROWS[1])[0]
    x = torch.zeros(1, GRID.tokens, 2, dim, dtype=dtype)
    for backend in BACKENDS:
        with pytest.raises(BackendError) as caught:
            fps_attention(x, x, x, plan, backend=backend)
        message = sentence(str(caught.value))
        assert reason in message and all(name in message for name in BACKENDS[1:])


def test_an_unknown_backend_names_the_known():
    plan, inputs, _ = scene(ROWS[1])
    with pytest.raises(BackendError, match=r"'cuda' is no backend; choose one of auto, triton-fp8"):
        fps_attention(*inputs, plan, backend="cuda")


def test_a_named_backend_that_cannot_run_says_why():
    plan, inputs, _ = scene(ROWS[1])
    for backend in ("triton-fp8", "triton-bf16"):
        with pytest.raises(BackendError) as caught:
            fps_attention(*inputs, plan, backend=backend)
        message = sentence(str(caught.value))
        assert f"the backend '{backend}' cannot run here" in message and "reference: can run" in message
        assert message.count("Triton") == 1, "a reason that several share is said once"


def test_autocast_changes_nothing():
    plan, inputs, grad = scene(ROWS[1])
    results = []
    for enabled in (False, True):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = fps_attention(*leaves, plan)
            out.backward(grad)
        results.append((out, *(x.grad for x in leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_a_cpu_takes_the_reference_and_says_so():
    for attention in ("bf16", "fp8"):
        name, note = resolve_backend("auto", "cpu", torch.float32, 128, attention)
        assert name == "reference"
        assert note.startswith(f"reference runs in place of triton-{attention} (") and "the tensors are on cpu" in note
        assert resolve_backend("reference", "cpu", torch.bfloat16, 64, attention) == ("reference", None)
        table = backends("cpu", torch.float32, 128, attention)
        assert [name for name, _ in table] == list(BACKENDS[1:]) and dict(table)["reference"] is None


@pytest.fixture
def card(monkeypatch):
    """Return a function that pretends to have a card of the given capability."""

    def pretend(capability: int) -> None:
        monkeypatch.setattr(dispatch_module.triton_runtime, "available", lambda device: None)
        monkeypatch.setattr(dispatch_module.triton_runtime, "interpreted", lambda: False)
        monkeypatch.setattr(dispatch_module.triton_runtime, "capability", lambda device: capability)
        monkeypatch.setattr(dispatch_module, "_triton_reason", lambda needs: None)
        forget_backends()

    return pretend


INT8_NOTE = "triton-fp8 (needs compute capability 8.9, this card has 8.0): int8 in place of fp8"


@pytest.mark.parametrize(
    ("capability", "dtype", "attention", "expected", "note"),
    [
        (90, torch.bfloat16, "fp8", "triton-fp8", None),
        (89, torch.float16, "fp8", "triton-fp8", None),
        (120, torch.float16, "fp8", "triton-fp8", None),
        (90, torch.bfloat16, "bf16", "triton-bf16", None),
        (80, torch.bfloat16, "fp8", "triton-int8", INT8_NOTE),
        (80, torch.bfloat16, "bf16", "triton-bf16", None),
        (75, torch.float16, "bf16", "reference", "triton-bf16 (needs compute capability 8.0, this card has 7.5)"),
        (90, torch.float32, "fp8", "reference", "triton-fp8 (takes bfloat16, float16, not float32)"),
    ],
)
def test_auto_says_what_runs_in_place_of_what(card, capability, dtype, attention, expected, note):
    card(capability)
    name, said = resolve_backend("auto", "cuda", dtype, 128, attention)
    assert name == expected
    assert said == (f"{expected} runs in place of {note}." if note else None)


@pytest.mark.parametrize(
    ("capability", "dtype", "taken"),
    [
        (90, torch.bfloat16, {"fp8": "triton-fp8", "bf16": "triton-bf16"}),
        (80, torch.float16, {"fp8": "triton-int8", "bf16": "triton-bf16"}),
        (75, torch.float16, {"fp8": None, "bf16": None}),
        (90, torch.float32, {"fp8": None, "bf16": None}),
        (90, torch.float64, {"fp8": None, "bf16": None}),
    ],
)
def test_a_gpu_without_a_fast_backend_stays_dense(card, capability, dtype, taken):
    card(capability)
    assert chosen_backends("cuda", dtype, 128) == taken
    if dtype == torch.float64:
        with pytest.raises(BackendError, match="leave it dense"):
            choose_backend("auto", "cuda", dtype, 128, "fp8")
        return
    assert choose_backend("reference", "cuda", dtype, 128, "fp8") == ("reference", None)
    name, said = choose_backend("auto", "cuda", dtype, 128, "bf16")
    if taken["bf16"] is None:
        assert name is None and "\n" not in said
        assert said.startswith("no fast backend runs here (needs compute" if capability < 80 else "no fast backend")
    else:
        assert (name, said) == resolve_backend("auto", "cuda", dtype, 128, "bf16")
    with force_backend("reference"):
        assert choose_backend("auto", "cuda", dtype, 128, "fp8") == ("reference", None)


def test_other_makers_stay_dense_and_a_cpu_does_not():
    name, said = choose_backend("auto", "mps", torch.float16, 128, "fp8")
    assert name is None and "Triton kernels need a CUDA device, the tensors are on mps" in said
    assert chosen_backends("cpu", torch.float32, 128) == {"fp8": "reference", "bf16": "reference"}
    assert chosen_backends("mps", torch.float16, 128, "reference") == {"fp8": "reference", "bf16": "reference"}
    assert chosen_backends("cpu", torch.float32, 128, "triton-bf16") == {"fp8": None, "bf16": None}


def test_int8_is_not_for_cards_with_fp8(card):
    card(90)
    with pytest.raises(
        BackendError, match=r"triton-int8: is for cards without FP8, this one has compute capability 9\.0"
    ):
        resolve_backend("triton-int8", "cuda", torch.bfloat16, 128, "fp8")


def test_an_old_triton_is_a_reason(card, monkeypatch):
    card(90)
    monkeypatch.undo()
    monkeypatch.setattr(dispatch_module.triton_runtime, "available", lambda device: None)
    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(__version__="3.2.0+git1"))
    forget_backends()
    reasons = dict(backends("cuda", torch.bfloat16, 128, "fp8"))
    assert reasons["triton-fp8"] == "needs triton 3.4 or newer, this one is 3.2.0+git1"


def test_a_chosen_backend_without_fp8_says_that_fp8_is_lost(card):
    card(90)
    name, note = resolve_backend("triton-bf16", "cuda", torch.bfloat16, 128, "fp8")
    assert name == "triton-bf16" and "without FP8" in note
    assert resolve_backend("triton-bf16", "cuda", torch.bfloat16, 128, "bf16") == ("triton-bf16", None)


def test_a_backend_can_be_forced_for_a_while(card):
    card(90)
    with force_backend("triton-bf16"):
        assert resolve_backend("auto", "cuda", torch.bfloat16, 128, "fp8")[0] == "triton-bf16"
        assert resolve_backend("triton-fp8", "cuda", torch.bfloat16, 128, "fp8")[0] == "triton-fp8"
        with force_backend("auto"):
            assert resolve_backend("auto", "cuda", torch.bfloat16, 128, "fp8")[0] == "triton-fp8"
        with force_backend("reference"), pytest.raises(RuntimeError, match="inside"):
            raise RuntimeError("inside")
        assert resolve_backend("auto", "cuda", torch.bfloat16, 128, "fp8")[0] == "triton-bf16"
    assert resolve_backend("auto", "cuda", torch.bfloat16, 128, "fp8")[0] == "triton-fp8"
    with pytest.raises(BackendError, match="'fast' is no backend; choose one of auto"), force_backend("fast"):
        pass


def test_forcing_ends_in_any_order(card):
    card(90)
    first, second = force_backend("reference"), force_backend("triton-bf16")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert resolve_backend("auto", "cuda", torch.bfloat16, 128, "fp8")[0] == "triton-bf16"
    second.__exit__(None, None, None)
    assert resolve_backend("auto", "cuda", torch.bfloat16, 128, "fp8")[0] == "triton-fp8"


def test_an_empty_batch_gives_an_empty_result():
    plan, (q, k, v), _ = scene(ROWS[1], grad=False)
    assert fps_attention(q[:0], k[:0], v[:0], plan).shape == q[:0].shape


def test_compiled_code_notices_a_forced_backend():
    plan, inputs, _ = scene(ROWS[1], grad=False)
    compiled = torch.compile(lambda *x: fps_attention(*x, plan), fullgraph=True, backend="aot_eager")
    expected = compiled(*inputs)
    with force_backend("triton-fp8"), pytest.raises(Exception, match="cannot run here"):
        compiled(*inputs)
    assert torch.equal(compiled(*inputs), expected)


def test_sparsity_only_backends_have_no_fp8_in_the_backward(monkeypatch):
    """An FP8 plan on the bf16 kernel: the gradient must match what the forward computed."""
    plan, inputs, _ = scene(ROWS[1])
    seen = []
    monkeypatch.setattr(op, "run_forward", lambda backend, q, k, v, spec: seen.append(spec) or _empty(q))
    monkeypatch.setattr("fpsattention.kernels.attention.resolve_backend", lambda *args: ("triton-bf16", None))
    fps_attention(*inputs, plan)
    assert seen[0].granularity is None and seen[0].format == "none"


def _empty(q):
    stats = torch.zeros(q.shape[0], q.shape[2], q.shape[1])
    return torch.zeros_like(q), stats, stats.clone()
