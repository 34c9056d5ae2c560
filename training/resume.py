"""What a state of a run holds, when it is written, and how a run goes on from one."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .config import ConfigError, RunConfig
from .distributed import World
from .moments import moment_pieces, start_moments, wanted_moments
from .peers import Peers
from .pieces import Piece, stored_tensors
from .same_run import base_of, check_same_run, check_same_tensors
from .state import (
    NotWrittenError,
    SnapshotError,
    check_complete,
    find_latest,
    list_steps,
    load_pieces,
    read_manifest,
    save_step,
)

if TYPE_CHECKING:
    from .step import Training

_log = logging.getLogger(__name__)


class Saver:
    """The states of a run on disk: ``restore`` once at the start, ``save`` when due, ``finish`` at the end.

    Every process makes one and calls these in the same order; ``data`` is what tells the run's samples from others.
    ``saved_step`` is the step of the newest state that is complete on disk, None while there is none; ``broken`` names
    what was not finite at the last save, None if all was.
    """

    def __init__(self, config: RunConfig, run: Training, world: World, data: str | None = None) -> None:
        self.config, self.run, self.data = config, run, data
        self.folder = Path(config.checkpoint.dir)
        self.peers = Peers(world.rank, world.size)
        self.saved_step: int | None = None
        self.broken: str | None = None
        self._base = base_of(config) if self.peers.is_main else None
        self._writing: _Writing | None = None

    def restore(self, resume: str) -> None:
        """Put a state into the run: the newest for 'auto' (if any), none for 'none', else that of a directory.

        Raises ConfigError when the run would overwrite or contradict what is there, SnapshotError for a bad state.
        """
        self.peers.main(lambda: check_start(self.config, resume))
        if resume == "none":
            return
        if resume == "auto":
            found = find_latest(self.folder, self.peers)
        else:
            found = Path(resume), check_complete(Path(resume), self.peers)
        if found is None:
            _log.info("%s holds no complete checkpoint; the run starts at step 0", self.folder)
            return
        path, manifest = found
        self.peers.main(lambda: check_same_run(manifest, self.config, self._base, path))
        self._read(path, manifest)
        before = manifest.get("data")
        if None not in (before, self.data) and before != self.data:
            self._warn(
                f"the samples are not those that the run has seen until {path.name}: clips, captions or the VAE have "
                "changed; it goes on with these, in another order"
            )
        _log.info("going on from %s", path)

    def save(self) -> None:
        """Write the state of now: in the background if so configured, after what is being written already.

        When it cannot be written, a warning says why, the last good state stays, and the run goes on.
        """
        self._settle()
        step = self.run.step
        if step == self.saved_step:
            return
        pieces = state_pieces(self.run, self.peers)
        self.broken = _not_finite(pieces, self.peers)
        if self.broken:
            self._warn(f"state of step {step} not written: {self.broken} is not finite; the last good state stays")
            return
        background = self.config.checkpoint.background
        if background:
            pieces = _on_cpu(pieces)
        self._writing = _Writing(self.folder, step, pieces, self._meta(), self.config.checkpoint.keep, self.peers)
        if background:
            self._writing.start()
        else:
            self._writing.run()
            self._settle()

    def finish(self) -> None:
        """Wait for what is being written in the background, and say if the newest state on disk is not the run's."""
        self._settle()
        if self.saved_step != self.run.step:
            newest = "there is no state on disk" if self.saved_step is None else f"the newest is of {self.saved_step}"
            self._warn(f"the state of step {self.run.step} is not on disk; {newest}")

    def _settle(self) -> None:
        """Wait for a write to end, and take note of its result, which is the same on all processes."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        writing.join()
        if writing.error is None:
            self.saved_step = writing.step
        elif isinstance(writing.error, NotWrittenError):
            self._warn(
                f"state of step {writing.step} not written: {writing.error}; the last good one stays, training goes on "
                "and tries again when the next is due"
            )
        else:
            raise writing.error

    def _warn(self, text: str) -> None:
        if self.peers.is_main:
            _log.warning("%s", text)

    def _meta(self) -> dict[str, Any]:
        run, whole = self.run, self.config.optim.samples
        plateau = run.plateau
        return {
            "samples": run.step * whole,
            "global_batch": whole,
            "skipped": run.skipped,
            "skipped_in_a_row": run.skipped_in_a_row,
            "plateau": None if plateau is None else plateau.state_dict(),
            "torch": torch.__version__,
            "base": self._base,
            "heads": None if self.config.attention.table is None else self.config.attention.table.to_json(),
            "data": self.data,
            "config": self.config.model_dump(mode="json"),
        }

    def _read(self, path: Path, manifest: dict[str, Any]) -> None:
        run, peers = self.run, self.peers
        start_moments(run.optimizer)
        stored = stored_tensors(path)
        pieces = _model_pieces(run) | _ema_pieces(run)
        check_same_tensors({name: piece.size for name, piece in pieces.items()}, stored, path)
        moments = wanted_moments(run.optimizer, _names(run), _group(stored, "optimizer"))
        pieces |= {f"optimizer/{name}": piece for name, piece in moments.pieces.items()}
        kept = _group(stored, f"rng/{peers.rank}")
        random = {key: torch.empty(size, dtype=sort) for key, (size, sort) in kept.items()}
        pieces |= {f"rng/{peers.rank}/{key}": Piece.of(tensor) for key, tensor in random.items()}
        load_pieces(path, pieces, peers)
        with torch.no_grad():
            for finish in moments.after:
                finish()
        _set_random(random)
        run.step = self.saved_step = manifest["step"]
        run.skipped, run.skipped_in_a_row = manifest["skipped"], manifest["skipped_in_a_row"]
        if run.skipped_in_a_row >= self.config.optim.nonfinite_limit:
            run.skipped_in_a_row = 0  # whoever resumes a run that had given up has changed something
        if manifest["plateau"] is not None and run.plateau is not None:
            run.plateau.load_state_dict(manifest["plateau"])


def check_start(config: RunConfig, resume: str) -> None:
    """Refuse to start over what is there, or from what is not: cheap, so also asked before the data are prepared.

    Raises ConfigError or SnapshotError with one sentence.
    """
    if resume == "none":
        if steps := list_steps(Path(config.checkpoint.dir)):
            raise ConfigError(
                f"checkpoint.dir {config.checkpoint.dir} already holds {len(steps)} checkpoints up to step "
                f"{steps[-1][0]}; go on with --resume auto, or name another directory"
            )
    elif resume != "auto":
        try:
            read_manifest(Path(resume))
        except SnapshotError as error:
            inside = list_steps(Path(resume)) or list_steps(Path(resume) / "checkpoints")
            fix = f"--resume {inside[-1][1]} is the newest in it" if inside else "--resume auto takes the newest state"
            raise SnapshotError(f"--resume {error}; {fix}") from None


class _Writing(threading.Thread):
    """One state on its way to the disk; ``error`` says at the end whether it got there.

    Not a daemon: when training ends in an error, the process still waits until the state is whole.
    """

    def __init__(
        self, folder: Path, step: int, pieces: dict[str, Piece], meta: dict[str, Any], keep: int, peers: Peers
    ) -> None:
        super().__init__(name=f"state of step {step}")
        self.step, self.error = step, None
        self._arguments = (folder, step, pieces, meta, keep, peers)

    def run(self) -> None:
        """Write; in the caller's thread when called directly."""
        try:
            save_step(*self._arguments)
        except Exception as error:
            self.error = error
        finally:
            del self._arguments  # a copy of the whole state

    def join(self, timeout: float | None = None) -> None:
        """Wait if it was started."""
        if self.ident is not None:
            super().join(timeout)


def state_pieces(run: Training, peers: Peers) -> dict[str, Piece]:
    """Return all tensors of the run's state as this process holds them, shared, not copied."""
    pieces = _model_pieces(run) | _ema_pieces(run)
    moments = moment_pieces(run.optimizer, _names(run), peers)
    pieces |= {f"optimizer/{name}": piece for name, piece in moments.items()}
    return pieces | {f"rng/{peers.rank}/{key}": Piece.of(tensor) for key, tensor in _random().items()}


def _model_pieces(run: Training) -> dict[str, Piece]:
    """Return the model's tensors, or only those that are trained where not all are."""
    tensors = run.model.state_dict()  # also makes FSDP put its shards in order
    trained = {_clean(name): parameter.requires_grad for name, parameter in run.model.named_parameters()}
    if not all(trained.values()):
        tensors = {name: tensor for name, tensor in tensors.items() if trained.get(_clean(name))}
    return {f"model/{_clean(name)}": Piece.of(tensor) for name, tensor in tensors.items()}


def _ema_pieces(run: Training) -> dict[str, Piece]:
    if run.ema is None:
        return {}
    return {f"ema/{_clean(name)}": Piece.of(tensor) for name, tensor in run.ema.tensors.items()}


def _names(run: Training) -> dict[int, str]:
    return {id(parameter): _clean(name) for name, parameter in run.model.named_parameters()}


def _clean(name: str) -> str:
    """Return a parameter's name without what wrappers add to it."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _group(stored: dict[str, Any], group: str) -> dict[str, Any]:
    return {name[len(group) + 1 :]: value for name, value in stored.items() if name.startswith(group + "/")}


def _random() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random(states: dict[str, torch.Tensor]) -> None:
    """Set the generators; a process that the state does not know of keeps its own (samples carry their own seeds)."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _not_finite(pieces: dict[str, Piece], peers: Peers) -> str | None:
    """Return the name of a tensor that holds infinities or NaN on any process, None if there is none."""
    floats = [
        (name, piece.local) for name, piece in pieces.items() if piece.local.is_floating_point() and piece.local.numel()
    ]
    # One pass without temporaries: both ends are NaN if any value is.
    checks = [torch.isfinite(torch.stack(local.aminmax())).all() for _, local in floats]
    bad = None
    if checks and not bool(torch.stack([check.to(checks[0].device) for check in checks]).all()):
        bad = next(name for (name, _), check in zip(floats, checks) if not bool(check))
    return next((name for name in peers.gather(bad) if name is not None), None)


def _on_cpu(pieces: dict[str, Piece]) -> dict[str, Piece]:
    """Return copies in CPU memory that training does not change.

    The memory is not pinned: pinned blocks are rounded up to powers of two and never given back, which costs more than
    a copy that is slower by seconds, once in some hundred steps.
    """
    return {
        name: Piece(torch.empty_like(piece.local, device="cpu").copy_(piece.local), piece.start, piece.size)
        for name, piece in pieces.items()
    }
