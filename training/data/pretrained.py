"""Encoders that others have published, loaded whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_whole(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Return the ``model_class`` of transformers from ``folder`` in ``dtype``.

    Raises ValueError where the files lack a weight; transformers fills it with random numbers and only warns.
    """
    model, said = model_class.from_pretrained(folder, local_files_only=True, dtype=dtype, output_loading_info=True)
    names = {name for name, _ in model.named_parameters()}
    if missing := sorted(names.intersection(said["missing_keys"])):
        raise ValueError(f"{len(missing)} of its {len(names)} weights are not in the files, '{missing[0]}' for one")
    return model
