"""Corrections to Triton's interpreter (3.6 and 3.7), without which its arithmetic is not the hardware's.

Three faults: a cast to FP8 loses carries, does not saturate and rounds ties and subnormals wrongly; a cast from float32
to bfloat16 truncates; a dot of bfloat16 tensors multiplies their bit patterns as integers.
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

TORCH_TYPES = {
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
}
FP8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def convert(array: np.ndarray, source: torch.dtype, target: torch.dtype) -> np.ndarray:
    """Return ``array`` (the bits of ``source`` numbers) as the bits of ``target`` numbers: unsigned, same shape.

    Rounds to nearest even; a cast to FP8 saturates, as the hardware's does, and keeps NaN.
    """
    signed = np.dtype(f"i{source.itemsize}") if source.itemsize > 1 else np.uint8
    numbers = torch.from_numpy(np.array(array, order="C").view(signed)).view(source)
    if target in FP8_TYPES:
        largest = torch.finfo(target).max
        numbers = numbers.float().clamp(-largest, largest)
    return numbers.to(target).view(BITS[target.itemsize]).numpy().view(f"u{target.itemsize}")


def reduce_by_halves(self, inputs: tuple) -> list:
    """Return ``tl.reduce`` of ``inputs`` with a function that Triton has no shortcut for, half of an axis at a time."""
    axis = self.axis
    arrays = [x.handle.data for x in inputs]
    if axis is None:
        arrays, axis = [x.reshape(-1) for x in arrays], 0
    while arrays[0].shape[axis] > 1:
        halves = zip(*(np.split(x, 2, axis) for x in arrays))
        first, second = ([self.to_tensor(x, i.dtype) for x, i in zip(half, inputs)] for half in halves)
        combined = self.combine_fn.fn(*first, *second)
        arrays = [x.handle.data for x in (combined if isinstance(combined, tuple) else (combined,))]
    if not self.keep_dims:
        arrays = [x.squeeze(axis)[()] for x in arrays]
    elif self.axis is None:
        arrays = [x.reshape((1,) * len(i.shape)) for x, i in zip(arrays, inputs)]
    return [self.to_tensor(x, i.dtype) for x, i in zip(arrays, inputs)]


def correct() -> None:
    """Replace the interpreter's casts, its bfloat16 dot and its reductions in this process; calling twice is fine."""
    original = interpreter._convert_float
    if getattr(original, "corrected", False):
        return

    def convert_float(array, source, target, rounding_mode):
        source_type, target_type = TORCH_TYPES.get(source), TORCH_TYPES.get(target)
        if source_type is None or target_type is None:
            return original(array, source, target, rounding_mode)
        return convert(array, source_type, target_type)

    convert_float.corrected = True
    interpreter._convert_float = convert_float

    original_dot = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.dtype.scalar == tl.bfloat16:
            a, b = (
                interpreter.TensorHandle(convert(x.data, torch.bfloat16, torch.float32).view(np.float32), tl.float32)
                for x in (a, b)
            )
        return original_dot(self, a, b, d, input_precision, max_num_imprecise_acc)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter.ReduceOps.generic_reduce = reduce_by_halves
