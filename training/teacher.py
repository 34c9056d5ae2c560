"""The dense teacher: what the model would have predicted before it was made sparse.

A teacher asks nothing of the data but inputs, so it steers the fine-tune where the data differ from what the base was
trained on; it also caps what the student can reach at the teacher's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from .attention import attention_state
from .model import WanTransformer3DModel, autocast, build, build_rope, model_shape
from .sparse import DENSE


@dataclass
class Teacher:
    """A frozen model, or the trained one with its adapters off, run densely."""

    model: WanTransformer3DModel
    dtype: str
    without: Callable[[], AbstractContextManager] = nullcontext

    @torch.no_grad()
    def velocity(self, inputs: Sequence[torch.Tensor], sigma: float, latent_shape: Sequence[int]) -> torch.Tensor:
        """Return the dense prediction (B, 16, T, H, W) for the same inputs; call it outside the student's step."""
        device = inputs[0].device
        densely = attention_state(self.model).step(DENSE, sigma, latent_shape)
        with self.without(), _eval(self.model), densely, autocast(device, self.dtype):
            return self.model(*inputs, return_dict=False)[0].float()


def frozen_copy(model: WanTransformer3DModel) -> WanTransformer3DModel:
    """Return a copy of the weights that takes no gradient.

    It is built anew: what has been wrapped around the original's modules would go on calling the original.
    """
    with torch.device("meta"):
        teacher = build(model_shape(model))
    teacher.rope = build_rope(teacher).to(next(model.parameters()).device)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    teacher.load_state_dict(state, strict=True, assign=True)
    return teacher.eval().requires_grad_(False)


@contextmanager
def _eval(model: WanTransformer3DModel) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
