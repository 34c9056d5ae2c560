"""Run by torchrun with two processes: optimizers, adapters, FP8 layers and the average on parameters that FSDP2 shards.

Every case compares with the same thing in one process, which every process computes for itself; rank 0 prints one
JSON line ``RESULT {case: figures}``. torchrun sharded_parts.py FOLDER
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from fpsattention.training.config import Fp8LinearsSection, LoraSection, OptimSection
from fpsattention.training.ema import Ema
from fpsattention.training.fp8_linears import use_fp8_linears
from fpsattention.training.lora import add_lora, init_lora, load_lora, lora_off, lora_state
from fpsattention.training.model import random_model
from fpsattention.training.names import WanShape
from fpsattention.training.optimizer import make_optimizer
from torch.distributed.fsdp import fully_shard

# A matrix of 32 x 128 is just large enough for 8-bit moments as a whole, though its halves are not.
SHAPE = WanShape(128, 32, 2, text_dim=16)
LORA = LoraSection(rank=4, targets=("self_attn.q", "ffn.0"))


def new_model():
    """Return the model of all cases; its last layer is not zeros, so that every layer gets a gradient."""
    model = random_model(SHAPE, 0)
    torch.nn.init.normal_(model.proj_out.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def shard(model):
    """Shard the model as the trainer does: every block, then the rest."""
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def forward(model, dtype=None):
    """Return the output for fixed noise."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 16, 3, 4, 4, generator=generator)
    text = torch.randn(1, 2, 16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        return model(x, torch.tensor([500.0]), text, return_dict=False)[0].float()


def train(model, optimizer, steps=4, dtype=None, after=None):
    """Return the losses of some steps; the same batch in every process makes averaged gradients the plain ones."""
    losses = []
    for _ in range(steps):
        loss = (forward(model, dtype) - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if after is not None:
            after()
    return losses


def whole(model):
    """Return all parameters in full."""
    full = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in model.named_parameters()}
    return {n: p.detach().clone() for n, p in full.items()}


def difference(a, b):
    """Return the largest relative L2 difference over tensors."""
    return max(float((a[n] - b[n]).norm() / (b[n].norm() + 1e-12)) for n in b)


def case_optimizers(folder):
    """Both optimizers: losses and weights after four steps, and what is held in eight bits."""
    result = {}
    for name in ("adamw", "adamw-8bit"):
        section = OptimSection(name=name, steps=9, warmup=0, lr=1e-3, weight_decay=0.01)
        plain, sharded = new_model(), shard(new_model())
        one, two = make_optimizer(section, plain), make_optimizer(section, sharded)
        losses = [train(plain, one), train(sharded, two)]
        result[name] = {"losses": losses, "weights": difference(whole(sharded), whole(plain))}
        kinds = {}
        for key, model, optimizer in (("plain", plain, one), ("sharded", sharded, two)):
            slots = {n: optimizer.state[p]["exp_avg"] for n, p in model.named_parameters()}
            local = {n: t.to_local() if hasattr(t, "to_local") else t for n, t in slots.items()}
            kinds[key] = sorted(n for n, t in local.items() if type(t) is not torch.Tensor)
        result[name]["same_kinds"], result[name]["eight_bit"] = kinds["plain"] == kinds["sharded"], len(kinds["plain"])
        weight = sharded.blocks[0].ffn.net[2].weight
        result[name]["share"] = weight.to_local().numel() / weight.numel()
    return result


def case_lora(folder):
    """Adapters on a frozen bf16 base: training, files, a start on meta, and the model without them."""

    def build():
        model = new_model()
        model.blocks.to(torch.bfloat16)
        return model

    plain = build()
    add_lora(plain, LORA, 3)
    start = {n: t.clone() for n, t in lora_state(plain).items()}
    sharded = build()
    add_lora(sharded, LORA, 3)
    shard(sharded)
    base = forward(build(), "bf16")
    section = OptimSection(steps=9, warmup=0, lr=1e-2)
    losses = [train(m, make_optimizer(section, m), dtype="bf16") for m in (plain, sharded)]
    one, two = lora_state(plain), lora_state(sharded)
    with lora_off(sharded), torch.no_grad():
        off = float((forward(sharded, "bf16") - base).abs().max())
    with torch.device("meta"):
        meta = new_model_on_meta()
    add_lora(meta, LORA, 3)
    shard(meta)
    meta.to_empty(device="cpu")
    init_lora(meta, 3)
    path = Path(folder) / "lora.safetensors"
    if dist.get_rank() == 0:
        from safetensors.torch import save_file

        save_file(one, path)
    dist.barrier()
    load_lora(sharded, path)
    return {
        "losses": losses,
        "state": difference(two, one),
        "names": list(two) == list(one),
        "off": off,
        "meta": difference(lora_state(meta), start),
        "loaded": difference(lora_state(sharded), one),
    }


def new_model_on_meta():
    from fpsattention.training.model import build

    return build(SHAPE)


def case_ema(folder):
    """The average: equal to one process's, in the model inside ``swapped`` even after a forward, and out again."""
    plain, sharded = new_model(), shard(new_model())
    section = OptimSection(steps=9, warmup=0, lr=1e-3)
    averages = []
    for model in (plain, sharded):
        ema = Ema(model, 0.9)
        train(model, make_optimizer(section, model), after=ema.update)
        averages.append(ema)
    trained = whole(plain)
    with torch.no_grad():
        before = forward(sharded)  # leaves the root's gathered weights behind
        with averages[0].swapped():
            want = forward(plain)
        with averages[1].swapped():
            inside, weights = forward(sharded), whole(sharded)
        after = forward(sharded)
    return {
        "averages": difference({n: t.full_tensor() for n, t in averages[1].tensors.items()}, averages[0].tensors),
        "inside": float((inside - want).norm() / want.norm()),
        "moved": float((inside - before).norm() / before.norm()),
        "weights": difference(weights, averages[0].tensors),
        "after": float((after - before).abs().max()),
        "trained": difference(whole(sharded), trained),
    }


def case_fp8(folder):
    """FP8 layers under sharding compute what they do in one process."""
    models = [new_model(), new_model()]
    for model in models:
        use_fp8_linears(model, Fp8LinearsSection(skip_first=0))
    plain, sharded = models[0], shard(models[1])
    names = [n for n, _ in sharded.named_parameters()] == [n for n, _ in new_model().named_parameters()]
    section = OptimSection(steps=9, warmup=0, lr=1e-3)
    losses = [train(m, make_optimizer(section, m)) for m in (plain, sharded)]
    return {"losses": losses, "weights": difference(whole(sharded), whole(plain)), "names": names}


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {}
    for name, case in list(globals().items()):
        if name.startswith("case_") and (len(sys.argv) < 3 or name in sys.argv[2:]):
            try:
                results[name[5:]] = case(sys.argv[1])
            except Exception:
                results[name[5:]] = {"error": traceback.format_exc()}
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(results), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
