"""Build the cache of latents that training reads: every process encodes its share of the clips, all then read all.

A clip is passed over once (``facts``), then decoded for the windows that its samples need, by threads that run ahead
while the encoder works. Files are named by everything that they depend on, so that nothing is encoded twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .assemble import assembled
from .build import Builder
from .clips import BadClips, Found, find_sources
from .dataset import LatentDataset
from .settings import DataConfig
from .text import text_files

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


def build_cache(
    config: DataConfig,
    vae: AutoencoderKLWan | Callable[[], AutoencoderKLWan],
    vae_id: str,
    *,
    text_device: torch.device | str = "cpu",
    progress: bool = True,
    rank: int = 0,
    size: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> LatentDataset:
    """Return the data set of ``config``, encoding with ``vae`` whatever ``config.cache`` does not hold yet.

    ``vae`` may be a function that loads it: it is called only if something is missing. ``vae_id`` identifies its
    weights and precision, whatever latents depend on. The embedding of no text is cached as well, for dropped
    captions; texts and pictures are encoded on ``text_device``. An interrupted build goes on where it stopped. Of
    ``size`` processes each encodes its share and waits for the others at ``barrier``. Raises ``DataError`` with one
    sentence.
    """
    cache = Path(config.cache).expanduser()
    texts: dict[str, Path] = {}
    for turn in (True, False):  # the first process reads and encodes what the others find made
        if (rank == 0) == turn:
            found = find_sources(config, cache, progress=progress)
            texts = text_files(config, ["", *(s.caption for s in found.sources)], cache, device=text_device)
        barrier()
    builder = Builder(config, vae, vae_id, cache, text_device)
    bad = _bad(config, found, cache)
    alone = size == 1
    if alone:
        bad.check()
    outcomes = builder.run(found.sources[rank::size], progress=progress, on_bad=bad if alone else None)
    barrier()
    if not alone:
        # What other processes made is there now; what is not (a folder that is not shared), this one makes.
        outcomes = builder.run(found.sources, progress=False, on_bad=bad, made=True)
    if rank == 0:
        bad.write()
    bad.check()
    builder.release()
    return assembled(config, outcomes, texts, bad, builder.repair)


def _bad(config: DataConfig, found: Found, cache: Path) -> BadClips:
    bad = BadClips(cache, found.total, config.max_bad)
    for one in found.refused:
        bad.add(one.path, one.error)
    return bad
