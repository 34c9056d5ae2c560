"""What a run survives, tried for real on a tiny model: kill -9, a full disk, SIGTERM, NaN, another process count.

python tests/training/robustness.py --kills 50 [--parts disk,nan,...] [--write docs/robustness] [--seed 0]

Prints a table and, with --write, keeps it as .md and .json. Exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from robustness_life import Life, is_finite, is_saving, newest, settings, state_hash, wait_for_save

CHILD = Path(__file__).with_name("child.py")
PARTS = ("disk", "nan", "counts", "sigterm", "kills", "kills-of-two")


def kills(folder: Path, count: int, chance: random.Random, size: int = 1) -> dict:
    """Kill a run so many times, most of them while a state is written, and let it end: compare with an unbroken run."""
    changes = {"optim__steps": 3 * count + 10, "checkpoint__every": 1}
    whole = settings(folder / "whole", **changes)
    life = Life(whole, "none", size=size)
    starts = []
    while wait_for_save(life, True) and len(starts) < 8:
        starts.append(time.monotonic())
        wait_for_save(life, False)
        starts[-1] = time.monotonic() - starts[-1]
    life.end()
    usual = sorted(starts)[len(starts) // 2]
    table = settings(folder / "killed", **changes)
    inside, lost, torn, alone = 0, 0, 0, 0
    expected = None
    for number in range(count):
        life = Life(table, "auto" if number else "none", size=size)
        aimed = chance.random() < 0.7
        alive = life.wait_for_steps(1)
        if aimed:
            alive = alive and wait_for_save(life, False) and wait_for_save(life, True)
            time.sleep(chance.random() * usual)
        else:
            alive = alive and life.wait_for_steps(chance.randint(0, 2))
            time.sleep(chance.random() * 2 * usual)
        life.kill(None if size == 1 else chance.randrange(size))
        if size > 1:  # what torchrun does when one of its processes is gone
            time.sleep(0.2)
            life.kill()
        life.end()
        if not alive and life.steps == 0:
            lost += 1
        lost += number > 0 and expected is not None and life.came_from != expected
        step, complete, bad = newest(life.folder)
        torn += len(bad)
        inside += is_saving(life.folder)
        alone += complete == 0
        expected = f"step-{step:06d}" if step >= 0 else None
    codes = Life(table, "auto", size=size).end()
    same = codes == [0] * size and state_hash(folder / "killed" / "states") == state_hash(folder / "whole" / "states")
    return {
        "what": f"kill -9 at {count} random moments, {size} process{'es' * (size > 1)}",
        "passed": lost == 0 and torn == 0 and same,
        "result": f"{inside} inside a save; {lost} runs lost, {torn} torn states under a finished name, "
        f"{alone} times no state yet; end state {'equal' if same else 'DIFFERENT'} to the bit",
        "figures": {"kills": count, "inside a save": inside, "lost": lost, "torn": torn, "equal": same,
                    "seconds of a save": round(usual, 3), "steps": 3 * count + 10},
    }  # fmt: skip


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Make the folder a file system of so many bytes if this user may mount one."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(folder: Path) -> list[dict]:
    """Fill the disk before a save, and in the middle of one; the room comes back for the third."""
    whole = settings(folder / "whole", optim__steps=12, checkpoint__every=3, checkpoint__keep=1)
    Life(whole, "none").end()
    size = sum(path.stat().st_size for path in (folder / "whole" / "states" / "step-000012").iterdir())
    rows = []
    for when in ("before", "during"):
        states = folder / when / "states"
        with small_disk(states, 2 * size + (3 << 20)) as mounted:
            if not mounted:
                rows.append({"what": f"disk full {when} a save", "passed": None,
                             "result": "not tried: mounting a disk takes root", "figures": {}})  # fmt: skip
                continue
            table = settings(folder / when, optim__steps=12, checkpoint__every=3, checkpoint__keep=1)
            life = Life(table, "none", meddle=lambda _rank, states=states, when=when: _fill(states, when))
            codes = life.end()
            warnings = [line.replace(str(states), "states") for line in life.said if "not written" in line]
            kept = any(line == "step-000003" for line in (states.parent / "seen").read_text().split())
            same = state_hash(states) == state_hash(folder / "whole" / "states")
            rows.append({
                "what": f"disk full {when} a save (tmpfs)",
                "passed": codes == [0] and len(warnings) == 1 and "disk is full" in warnings[0] and kept and same,
                "result": f"{len(warnings)} warning; last good state {'kept' if kept else 'LOST'}; trained on, "
                f"next save written, end state {'equal' if same else 'DIFFERENT'} to the bit",
                "figures": {"warning": warnings[0].split(": ", 1)[1] if warnings else None, "equal": same},
            })  # fmt: skip
    return rows


def _fill(states: Path, when: str) -> None:
    """In the training process: take the disk's room around the save of step 6, give it back before that of step 9."""
    from fpsattention.training import state

    filler = states / "filler"

    def take() -> None:
        left = 1 << 18  # less than a state: its file is begun, not ended
        filler.write_bytes(bytes(shutil.disk_usage(states).free - left))

    def watch() -> None:
        target = states / "step-000006.tmp"
        if when == "before":
            while not (states / "step-000003").exists():
                time.sleep(0.0005)
            take()
        real = state.write_pieces

        def write_when_full(path, pieces, group):
            if path == target and when == "during":
                take()  # the room was there when it was looked at
            real(path, pieces, group)

        state.write_pieces = write_when_full

    real_undo = state._undo

    def undo(partial, need, error):
        why = real_undo(partial, need, error)
        filler.unlink(missing_ok=True)
        (states.parent / "seen").write_text(" ".join(path.name for path in states.glob("step-*")))
        return why

    state._undo = undo
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()


def sigterm(folder: Path, chance: random.Random) -> list[dict]:
    """Ask a run to stop: alone, and under torchrun with two processes; then go on and compare with an unbroken run."""
    changes = {"optim__steps": 14, "checkpoint__every": 0}
    whole = settings(folder / "whole", **changes)
    Life(whole, "none").end()
    table = settings(folder / "stopped", **changes)
    life = Life(table, "none")
    life.wait_for_steps(chance.randint(2, 5))
    asked = life.steps
    os.kill(life.processes[0].pid, signal.SIGTERM)
    codes = life.end()
    saved, _, _ = newest(life.folder)
    rest = Life(table, "auto").end()
    same = rest == [0] and state_hash(folder / "stopped" / "states") == state_hash(folder / "whole" / "states")
    rows = [{
        "what": "SIGTERM, 1 process",
        "passed": codes == [75] and asked <= saved <= asked + 2 and saved == life.steps and same,
        "result": f"exit {codes[0]}; asked after step {asked}, saved step {saved}, "
        f"resumed to an end state {'equal' if same else 'DIFFERENT'} to the bit",
        "figures": {"asked": asked, "saved": saved, "exit": codes[0], "equal": same},
    }]  # fmt: skip
    table = settings(folder / "torchrun", optim__steps=5000, checkpoint__every=0)
    file = folder / "torchrun.json"
    file.write_text(json.dumps(table))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.Popen([*launcher, str(CHILD), str(file), "none"], stdout=subprocess.PIPE, text=True)
    asked, saw = None, 0
    for line in run.stdout:
        if line.startswith("step "):
            saw = max(saw, int(line.split()[1]))
        if saw >= 3 and asked is None:
            asked = saw
            run.send_signal(signal.SIGTERM)
    run.wait(300)
    saved, _, torn = newest(folder / "torchrun" / "states")
    rows.append({
        "what": "SIGTERM to torchrun, 2 processes",
        "passed": asked is not None and saved == saw and saved - asked <= 2 and not torn,
        "result": f"asked after step {asked}, both left after step {saw}, saved step {saved}",
        "figures": {"asked": asked, "saved": saved, "launcher's exit": run.returncode},
    })  # fmt: skip
    return rows


def process_counts(folder: Path) -> dict:
    """Go on with other numbers of processes and compare with one process throughout."""
    unbroken = Life(settings(folder / "whole", optim__steps=12, checkpoint__every=0), "none")
    unbroken.end()
    stops, sizes = (3, 5, 7, 9, 12), (1, 2, 4, 2, 1)
    codes, losses = [], []
    for number, (stop, size) in enumerate(zip(stops, sizes)):
        table = settings(folder / "changing", optim__steps=12, checkpoint__every=0)
        life = Life(table, "auto" if number else "none", size=size)
        if stop < 12:
            life.wait_for_steps(stop - (stops[number - 1] if number else 0) - 1)
            for process in life.processes:
                os.kill(process.pid, signal.SIGTERM)
        codes += life.end()
        losses += life.losses()
    from fpsattention.training.state import load_tensors

    ends = [load_tensors(folder / name / "states" / "step-000012", "model") for name in ("whole", "changing")]
    apart = max(float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0])
    worst = max(abs(here / there - 1) for here, there in zip(losses, unbroken.losses()))
    return {
        "what": "resume on other numbers of processes, " + " to ".join(map(str, sizes)),
        "passed": set(codes) <= {0, 75} and worst < 1e-5 and len(losses) == 12,
        "result": f"12 steps, each once; losses within {worst:.1e} of one process throughout",
        "figures": {"losses apart, relative": worst, "weights apart": apart, "exits": codes},
    }


def not_finite(folder: Path, size: int) -> dict:
    """Make the loss NaN on one process only: once, then again and again."""
    limit = 3
    table = settings(folder / f"nan-{size}", optim__steps=14, checkpoint__every=2, optim__nonfinite_limit=limit)
    life = Life(table, "none", size=size, meddle=_poison)
    codes = life.end()
    skipped = [line.split()[1] for line in life.said if line.startswith("step ") and line.endswith(" None")]
    saved, _, torn = newest(life.folder)
    finite = is_finite(life.folder)
    return {
        "what": f"NaN loss, {size} process{'es' * (size > 1)}{', on one of them' * (size > 1)}",
        "passed": codes == [3] * size and skipped[0] == "3" and finite and saved == 9 and not torn,
        "result": f"1 step skipped and trained on; after {limit} in a row exit {codes[0]} on "
        f"{'all' if size > 1 else 'it'}; saved state of step {saved} is {'finite' if finite else 'NOT finite'}",
        "figures": {"exits": codes, "skipped": skipped, "saved": saved, "finite": finite},
    }


def _poison(rank: int) -> None:
    """In the training process: make the loss of step 2, and from step 6 on, NaN on the last process."""
    from fpsattention.training import step

    real_step, real_loss, now = step.train_step, step.velocity_loss, {"step": 0}

    def remember(run, *arguments):
        now["step"] = run.step
        now["bad"] = run.world.rank == run.world.size - 1 and (run.step == 2 or run.step >= 6)
        return real_step(run, *arguments)

    def loss(*arguments):
        return real_loss(*arguments) * (float("nan") if now["bad"] else 1.0)

    from fpsattention.training import loop

    loop.train_step, step.velocity_loss = remember, loss


def as_table(rows: list[dict]) -> str:
    """Return the rows as markdown."""
    word = {True: "yes", False: "NO", None: "skipped"}
    lines = ["| what happens | survived | what was seen |", "|---|---|---|"]
    return "\n".join(lines + [f"| {row['what']} | {word[row['passed']]} | {row['result']} |" for row in rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--kills-of-two", type=int, default=8, help="kills of a run of two processes")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"which of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", metavar="NAME", help="keep the table as NAME.md and NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        root, rows = Path(name), []

        parts = {
            "disk": lambda: full_disk(root / "disk"),
            "nan": lambda: [not_finite(root, 1), not_finite(root, 2)],
            "counts": lambda: [process_counts(root / "counts")],
            "sigterm": lambda: sigterm(root / "sigterm", chance),
            "kills": lambda: [kills(root / "kills", args.kills, chance)],
            "kills-of-two": lambda: [kills(root / "kills-of-two", args.kills_of_two, chance, size=2)],
        }
        for part in args.parts.split(","):
            for row in parts[part]():
                print(as_table([row]).splitlines()[-1], flush=True)
                rows.append(row)
    if args.write:
        text = (
            "# What a run survives\n\nTried on a tiny model (CPU, gloo) by `python tests/training/robustness.py "
            f"--kills {args.kills}`, torch {torch.__version__}.\n\n{as_table(rows)}\n"
        )
        Path(f"{args.write}.md").write_text(text, encoding="utf-8")
        Path(f"{args.write}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["passed"] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
