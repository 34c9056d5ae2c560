"""Weights on disk and in a model: read from any usual file or folder, tensor by tensor, and gathered again."""

from .fill import gathered, load_into
from .read import Weights, open_weights

__all__ = ["Weights", "gathered", "load_into", "open_weights"]
