"""A whole denoising step: diffusers' Wan with random weights, dense and sparse, and where its time goes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import torch
from torch import nn

from ..grid import TokenGrid
from ..outlook import sampler_sigmas
from ..plan import plans_for
from ..schedule import Schedule
from .cells import Cell
from .figures import FEWEST_FOR_SPREAD
from .model_attention import DENSE, Marks, Processor, State, dense_backend, mark_linears
from .model_shapes import HEAD_DIM, SHAPES, STEPS, TARGET_RATIO, TEXT_TOKENS
from .timing import Clock, Timing, short

CHANNELS = 16
TIMED_SECONDS = 20.0
FEWEST_REPEATS, MOST_REPEATS = 3, 5


def build(cell: Cell, device: torch.device) -> nn.Module:
    """Return the untrained model in bf16, its weights made on the device; raises ImportError without diffusers."""
    _without_broken_torchvision()
    from diffusers import WanTransformer3DModel

    shape = SHAPES[cell.model]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = WanTransformer3DModel(
                patch_size=(1, 2, 2), attention_head_dim=HEAD_DIM, in_channels=CHANNELS, out_channels=CHANNELS,
                freq_dim=256, cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=1e-6, **shape,
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)
    # The rotary table is no weight: it keeps its own precision.
    model.rope = type(model.rope)(HEAD_DIM, (1, 2, 2), model.config.rope_max_seq_len).to(device)
    return model.eval().requires_grad_(False)


def _without_broken_torchvision() -> None:
    """Hide a torchvision that does not fit this torch: diffusers imports it wherever it is, and needs nothing of it."""
    try:
        import torchvision  # noqa: F401
    except Exception:  # a wrong build fails in many ways
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None


class Step:
    """One forward of the model on random latents and text, under the plan that the state holds."""

    def __init__(self, cell: Cell, device: torch.device) -> None:
        self.cell, self.device, self.clock = cell, device, Clock(device)
        self.model = build(cell, device)
        self.marks = Marks(self.clock)
        self.state = State(self.marks)
        # One for all: blocks that share it share one compiled graph as well.
        processor = Processor(self.state)
        for block in self.model.blocks:
            block.attn1.set_processor(processor)
            block.attn2.set_processor(processor)
        if cell.compiled:
            compile_blocks(self.model, device)
        t, h, w = cell.grid
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator, device=device).to(torch.bfloat16)

        self.inputs = {
            "hidden_states": normal(1, CHANNELS, t, 2 * h, 2 * w),
            "timestep": torch.full((1,), 500.0, device=device),
            "encoder_hidden_states": normal(1, TEXT_TOKENS, SHAPES[cell.model]["text_dim"]),
        }

    def __call__(self) -> torch.Tensor:
        """Run one step and return the model's prediction."""
        with torch.no_grad(), dense_backend(self.state.dense):
            return self.model(**self.inputs, return_dict=False)[0]

    def timing(self) -> Timing:
        """Return the milliseconds of a step that ran before, so that nothing compiles now; three at least, a stand-in's
        once."""
        times = self.clock.sample(self, 1)
        if self.clock.cuda:
            wanted = min(MOST_REPEATS, max(FEWEST_REPEATS, int(TIMED_SECONDS * 1e3 / times[0])))
            times += self.clock.sample(self, wanted - 1)
        return Timing.of(times)

    def split(self) -> dict[str, float]:
        """Return the milliseconds of a step by part, from one step with marks around each; never compiled."""
        with _eager(self.model):
            remove = mark_linears(self.model, self.marks)
            self.marks.on = True
            try:
                total = self.clock.sample(self, 1)[0]
            finally:
                self.marks.on = False
                remove()
        parts = self.marks.milliseconds()
        return {**parts, "rest": max(0.0, total - sum(parts.values())), "total": total}


def compile_blocks(model: nn.Module, device: torch.device) -> None:
    """Compile each block by itself; a stand-in traces only, to try the path."""
    # A graph per phase and precision is meant; past the limit torch would run uncompiled without a word.
    torch._dynamo.config.recompile_limit = 64
    for block in model.blocks:
        block.compile(backend="inductor" if device.type == "cuda" else "aot_eager")


def graphs() -> int:
    """Return how many graphs torch has compiled in this process."""
    return torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)


@contextlib.contextmanager
def _eager(model: nn.Module):
    """Run the blocks uncompiled inside: marks have no place in a compiled graph."""
    kept = [getattr(block, "_compiled_call_impl", None) for block in model.blocks]
    for block in model.blocks:
        block._compiled_call_impl = None
    try:
        yield
    finally:
        for block, implementation in zip(model.blocks, kept):
            block._compiled_call_impl = implementation


def run(cell: Cell, device: torch.device, standin: bool, save: Callable[[dict], None]) -> dict:
    """Return the cell's result: per variant (dense or sparse, bf16 or FP8 linears) the time of a step and its parts,
    the ratios to the dense steps with the same and with bf16 linears, and the mean density that would give the target
    ratio. Dense is the faster one of torch's cuDNN and FlashAttention-2, which a sparse step's cross-attention then
    takes as well."""
    del standin  # the device says it all
    step = Step(cell, device)
    phases = plans(cell, device)
    result: dict = {
        "variants": {},
        "mean_density": sum(p["share"] * p["density"] for p in phases),
        "phases": [{k: v for k, v in p.items() if k != "plan"} for p in phases],
        "parameters": sum(p.numel() for p in step.model.parameters()),
        "linears": "bf16",
    }

    def both(linears: str) -> None:
        for kind, chosen in (("dense", [{"plan": None, "share": 1.0, "density": 1.0}]), ("sparse", phases)):
            name = f"{kind}, {linears} linears"
            try:
                tried = choose_dense(step) if kind == "dense" else {}
                result["variants"][name] = {**variant(step, chosen), "dense": step.state.dense, **tried}
            except Exception as error:  # one variant's failure costs that variant
                result["variants"][name] = {"status": "failed", "reason": short(error)}
            save(result)

    both("bf16")
    if cell.linears == "fp8":
        reason = fp8_linears(step.model)
        if cell.compiled and not reason:
            compile_blocks(step.model, device)
        if reason:
            result["variants"]["sparse, fp8 linears"] = {"status": "not run", "reason": reason}
        else:
            both("fp8")
    result["compiled_graphs"] = graphs()
    conclude(result)
    return result


def plans(cell: Cell, device: torch.device) -> list[dict]:
    """Return one entry per phase that a run of the schedule meets: plan (None: dense), density, share of the steps."""
    schedule = Schedule.parse(cell.schedule)
    known = plans_for(schedule, TokenGrid(*cell.grid), cell.heads, slots=cell.slots)
    sigmas = sampler_sigmas(STEPS, cell.shift)[:-1]
    found: dict[int, dict] = {}
    for sigma in sigmas:
        index = schedule.at(sigma)[0]
        if index not in found:
            plan = known.at(sigma, device=device)
            found[index] = {"phase": index, "plan": plan, "density": known.density(sigma), "share": 0.0}
        found[index]["share"] += 1 / len(sigmas)
    return list(found.values())


def choose_dense(step: Step) -> dict:
    """Let ``step`` take the faster of torch's dense attentions and return the milliseconds of each, or why it has none;
    raises RuntimeError if none runs."""
    if not step.clock.cuda:
        return {}
    step.state.plan = None
    times, reasons = {}, {}
    for name in DENSE:
        step.state.dense = name
        try:
            step()
            times[name] = step.clock.sample(step, 1)[0]
        except Exception as error:  # the other one may run
            reasons[name] = short(error)
    if not times:
        raise RuntimeError("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    step.state.dense = min(times, key=times.get)
    return {"dense_ms": times, "dense_reasons": reasons}


def variant(step: Step, phases: list[dict]) -> dict:
    """Return the mean step of a run that spends ``share`` of its steps in each phase: milliseconds, and by part."""
    total, parts, spread, count = 0.0, {}, 0.0, MOST_REPEATS
    for phase in phases:
        step.state.plan = phase["plan"]
        if not torch.isfinite(step()).all():
            raise RuntimeError("the model's prediction is not finite")
        timing = step.timing()
        total += phase["share"] * timing.median
        spread, count = max(spread, timing.spread), min(count, timing.count)
        for name, value in step.split().items():
            parts[name] = parts.get(name, 0.0) + phase["share"] * value
    told = {"spread": spread} if count >= FEWEST_FOR_SPREAD else {}
    return {"status": "ok", "ms": total, "count": count, **told, "parts_ms": parts}


def fp8_linears(model: nn.Module) -> str | None:
    """Make the blocks' linear layers FP8 through torchao (dynamic activations and weights, a scale per row); return
    why not, None if done."""
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    except ImportError as error:
        return f"not installed (torchao: {short(error, 120)})"
    try:
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
        quantize_(model.blocks, config, filter_fn=lambda module, name: isinstance(module, nn.Linear))
    except Exception as error:  # its own checks of card and version
        return f"torchao refuses: {short(error)}"
    return None


def conclude(result: dict) -> None:
    """Add ratios, Amdahl's split and the headline to a whole-step result."""
    variants = result["variants"]
    done = {name: v for name, v in variants.items() if v.get("status") == "ok"}
    base = done.get("dense, bf16 linears")
    result["status"] = "ok" if base and len(done) > 1 else "failed"
    if result["status"] == "failed":
        result["message"] = "; ".join(f"{n}: {v.get('reason')}" for n, v in variants.items() if v not in done.values())
        return
    for name, v in done.items():
        v["ratio"] = base["ms"] / v["ms"]
        same = done.get(f"dense, {name.partition(', ')[2]}")
        if same:
            v["ratio_same_linears"] = same["ms"] / v["ms"]
        if name.startswith("sparse"):
            v["amdahl"] = amdahl(base["ms"], v["ms"], v["parts_ms"]["self-attention"], result["mean_density"])
    best = max((n for n in done if n.startswith("sparse")), key=lambda n: done[n]["ratio"], default=None)
    share = base["parts_ms"]["self-attention"] / base["parts_ms"]["total"]
    result["self_attention_share"] = share
    if best:
        same = done[best].get("ratio_same_linears")
        also = f" ({same:.2f}x against dense with the same linears)" if same else ""
        result["headline"] = (
            f"{base['ms']:.1f} ms dense, {done[best]['ms']:.1f} ms {best}: {done[best]['ratio']:.2f}x{also} at mean "
            f"density {result['mean_density']:.1%}; self-attention is {share:.0%} of the dense step"
        )


def amdahl(dense_ms: float, ours_ms: float, attention_ms: float, density: float, target: float = TARGET_RATIO) -> dict:
    """Return the ratio that remains if self-attention cost nothing, and the mean density for the target ratio.

    Self-attention's time is taken as proportional to the density. The density is None where the rest alone takes
    longer than the target allows.
    """
    rest = max(ours_ms - attention_ms, 1e-9)
    allowed = dense_ms / target - rest
    needed = density * allowed / attention_ms if allowed > 0 and attention_ms > 0 else None
    return {"limit": dense_ms / rest, "target": target, "density_for_target": needed}
