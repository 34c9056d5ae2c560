"""The optimizer of a run: torch's AdamW, or torchao's with moments held in 8 bits.

Only parameters that require gradients take part. Matrices are decayed; biases, norms and modulation are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from .torchao_guard import torchao

if TYPE_CHECKING:
    from .config import OptimSection

# Moments of one block share a scale. Wan's widths are multiples of 128, so that no block spans two rows of a matrix,
# and rows can be dealt out to any number of processes.
BLOCK = 128
# Smaller matrices keep moments in float32, as is usual for 8-bit optimizers: they are no memory, but sensitive.
SMALL = 4096
ROUTER = "talora_router."


def make_optimizer(section: OptimSection, model: nn.Module, router_lr: float = 1.0) -> torch.optim.Optimizer:
    """Return the optimizer of the model's trainable parameters, plain or sharded (DTensor).

    A group's ``factor`` is its learning rate over the run's: ``router_lr`` for a timestep-aware LoRA's router.

    8-bit moments are for GPUs: on a CPU (with ``parallel.offload`` too) their step takes tens of times AdamW's.
    Raises ConfigError when 'adamw-8bit' is asked for and torchao is missing, ValueError when nothing is trainable.
    """
    groups = parameter_groups(model, section.weight_decay, router_lr)
    settings = {"lr": section.lr, "betas": section.betas, "eps": section.eps}
    if section.name == "adamw":
        return torch.optim.AdamW(groups, fused=True, **settings)
    return _eight_bit_class()(groups, **settings, block_size=BLOCK)


def parameter_groups(model: nn.Module, weight_decay: float, router_lr: float = 1.0) -> list[dict]:
    """Return the groups of trainable parameters: decayed matrices, all others, and a router if there is one."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the model has no trainable parameter; nothing can be optimized")
    router = [p for name, p in trainable if name.startswith(ROUTER)]
    trainable = [(name, p) for name, p in trainable if not name.startswith(ROUTER)]
    matrices = [p for name, p in trainable if _is_matrix(name, p)]
    others = [p for name, p in trainable if not _is_matrix(name, p)]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return groups + ([{"params": router, "weight_decay": 0.0, "factor": router_lr}] if router else [])


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim >= 2 and not name.endswith("scale_shift_table")


def holds_eight_bits(parameter: torch.Tensor) -> bool:
    """Return True if 'adamw-8bit' quantizes this parameter's moments; the same for any number of processes."""
    return parameter.ndim == 2 and parameter.shape[1] % BLOCK == 0 and parameter.numel() >= SMALL


def _eight_bit_class() -> type[torch.optim.Optimizer]:
    base = torchao("optim", "optim.name = 'adamw-8bit'").AdamW8bit

    class AdamW8bit(base):
        """Torchao's AdamW8bit for a loop that sets plain numbers as rates, on machines with and without a compiler."""

        def _new_buffer(self, p: torch.Tensor, signed: bool) -> torch.Tensor:
            # What is quantized must not depend on how many processes share the parameter, or a state saved by some
            # would not fit others.
            sharded = hasattr(p, "to_local")
            local = p.to_local() if sharded else p
            if not holds_eight_bits(p) or not local.numel():
                return torch.zeros_like(p)
            moment = self._subclass_zeros(local, signed, self.block_size)
            if sharded:
                from torch.distributed.tensor import DTensor

                place = {"shape": p.shape, "stride": p.stride(), "run_check": False}
                moment = DTensor.from_local(moment, p.device_mesh, p.placements, **place)
            return moment.to(p.device)

        def step(self, closure=None):
            """Take one step and return the closure's loss; rates stay the plain numbers that they were."""
            rates = [group["lr"] for group in self.param_groups]
            for group in self.param_groups:
                group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
            try:
                with torch.compiler.set_stance("default" if _compiles(self.param_groups) else "force_eager"):
                    return super().step(closure)
            finally:
                for group, rate in zip(self.param_groups, rates):
                    group["lr"] = float(rate)

    return AdamW8bit


def _compiles(groups: list[dict]) -> bool:
    # On a CPU the compiled step needs a C++ compiler and minutes of its time; the eager one needs neither.
    from torch.utils._triton import has_triton

    return all(p.device.type == "cuda" for group in groups for p in group["params"]) and has_triton()
