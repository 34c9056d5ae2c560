"""An optimizer's state as named pieces, 8-bit moments included, and back.

``<slot>/<name>`` is a moment in full precision. An 8-bit moment is three plain tensors instead:
``<slot>.codes/<name>``, one scale per run of values in ``<slot>.scale/<name>``, and ``<slot>.map``, the 256 values that
codes stand for. Read by processes whose parts do not begin with such a run, or that hold the moment in another
precision, it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

from .peers import Peers
from .pieces import Piece
from .state import SnapshotError


def start_moments(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer that has not taken a step the state that its first step would make; weights do not change."""
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = torch.zeros_like(rate) if isinstance(rate, torch.Tensor) else 0.0
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate


def moment_pieces(optimizer: torch.optim.Optimizer, names: Mapping[int, str], peers: Peers) -> dict[str, Piece]:
    """Return the optimizer's state; ``names`` maps id(parameter) to name. All processes take part."""
    found = {
        f"{slot}/{names[id(parameter)]}": Piece.of(torch.as_tensor(value))
        for parameter, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
    coded = {key for key, piece in found.items() if _is_coded(piece.local)}
    plain = {key for key, piece in found.items() if piece.local.numel() and not _fits(piece)}
    # Processes whose part is small keep it in full precision: then the whole is written so.
    mixed = set().union(*(theirs for theirs in peers.gather(plain))) & coded if _any(peers, coded) else set()
    pieces: dict[str, Piece] = {}
    for key, piece in found.items():
        if key not in coded:
            pieces[key] = piece
        elif key in mixed:
            pieces[key] = Piece(piece.local.dequantize(), piece.start, piece.size)
        else:
            slot, name = key.split("/", 1)
            codes, scale, values = piece.local.codes, piece.local.scale, piece.local.qmap
            run = codes.numel() // scale.numel()
            pieces[f"{slot}.codes/{name}"] = Piece(codes, piece.start, piece.size)
            whole = torch.Size(piece.size).numel() // run
            pieces[f"{slot}.scale/{name}"] = Piece(scale, (_first(piece) // run,), (whole,))
            pieces[f"{slot}.map"] = Piece.of(values)
    return pieces


@dataclass
class Wanted:
    """Pieces to read, and what is to be done when they have been."""

    pieces: dict[str, Piece]
    after: list[Callable[[], None]]


def wanted_moments(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    stored: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
) -> Wanted:
    """Return what to read into an optimizer whose state exists (``start_moments``).

    State of a parameter that is not among ``stored`` (names without the group's prefix) is forgotten: that parameter
    never had a gradient.
    """
    wanted = Wanted({}, [])
    for parameter, slots in list(optimizer.state.items()):
        name = names[id(parameter)]
        if not any(key.split("/", 1)[-1] == name for key in _keys(slots, name) if key in stored):
            del optimizer.state[parameter]
            continue
        for slot, value in slots.items():
            piece = Piece.of(value)
            if not piece.local.numel():
                continue
            if f"{slot}/{name}" in stored:
                _want_plain(wanted, f"{slot}/{name}", piece)
            elif f"{slot}.scale/{name}" not in stored:
                raise SnapshotError(f"the state holds no '{slot}' of {name}; go on with the optimizer that it was from")
            else:
                runs = torch.Size(piece.size).numel() // stored[f"{slot}.scale/{name}"][0][0]
                _want_coded(wanted, slot, name, piece, runs)
    return wanted


def _keys(slots: Collection[str], name: str) -> list[str]:
    return [f"{slot}{kind}/{name}" for slot in slots for kind in ("", ".codes")]


def _want_plain(wanted: Wanted, key: str, piece: Piece) -> None:
    if not _is_coded(piece.local):
        wanted.pieces[key] = piece
        return
    values = torch.empty(piece.local.shape, dtype=torch.float32)
    wanted.pieces[key] = Piece(values, piece.start, piece.size)
    wanted.after.append(lambda: piece.local.copy_(values.to(piece.local.device)))


def _want_coded(wanted: Wanted, slot: str, name: str, piece: Piece, run: int) -> None:
    start = _first(piece)
    size = piece.local.numel()
    runs = (torch.Size(piece.size).numel() // run,)
    if _is_coded(piece.local) and start % run == 0 and piece.local.codes.numel() == piece.local.scale.numel() * run:
        wanted.pieces[f"{slot}.codes/{name}"] = Piece(piece.local.codes, piece.start, piece.size)
        wanted.pieces[f"{slot}.scale/{name}"] = Piece(piece.local.scale, (start // run,), runs)
        return
    codes = torch.empty(piece.local.shape, dtype=torch.uint8)
    first = start // run
    scale = torch.empty((start + size - 1) // run + 1 - first, dtype=torch.float32)
    values = wanted.pieces.setdefault(f"{slot}.map", Piece.of(torch.empty(256, dtype=torch.float32))).local
    wanted.pieces[f"{slot}.codes/{name}"] = Piece(codes, piece.start, piece.size)
    wanted.pieces[f"{slot}.scale/{name}"] = Piece(scale, (first,), runs)

    def decode() -> None:
        of_run = (torch.arange(start, start + size) // run - first).view(codes.shape)
        piece.local.copy_((values[codes.long()] * scale[of_run]).to(piece.local.device))

    wanted.after.append(decode)


def _is_coded(local: torch.Tensor) -> bool:
    """Return True for a moment that torchao holds in 8 bits."""
    return all(hasattr(local, part) for part in ("codes", "scale", "qmap"))


def _fits(piece: Piece) -> bool:
    """Return True for an 8-bit piece of whole rows that begins with a run: stored, it is part of one long list."""
    if not _is_coded(piece.local) or tuple(piece.local.shape[1:]) != piece.size[1:]:
        return False
    run = piece.local.codes.numel() // piece.local.scale.numel()
    return _first(piece) % run == 0 and torch.Size(piece.size).numel() % run == 0


def _first(piece: Piece) -> int:
    """Return the place of the piece's first value in the whole tensor, row after row."""
    return piece.start[0] * torch.Size(piece.size[1:]).numel() if piece.size else 0


def _any(peers: Peers, coded: set[str]) -> bool:
    return any(peers.gather(bool(coded)))
