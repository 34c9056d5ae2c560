"""Everything that a card is needed for, in the order of its worth, each step under a time limit of its own.

    python tests/gpu/suite.py --smoke               three minutes, to be run first
    python tests/gpu/suite.py --budget 1500         all parts
    python tests/gpu/suite.py --parts bench --budget 560
    python tests/gpu/suite.py --standin             the same steps on a CPU; its numbers mean nothing

A step that fails or hangs costs itself. What happened is written after every step as JSON, beside the benchmark's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fpsattention.kernels.bench.store import newest, published  # noqa: E402

PARTS = ("smoke", "bench", "tests", "heads", "msfp", "model", "train", "tune", "sanitize", "report")
TAIL = 4000


@dataclass(frozen=True)
class Step:
    """One command: ``share`` of the whole budget at most, ``needs`` a tool, ``skip`` says why it is left out."""

    part: str
    name: str
    command: tuple[str, ...]
    limit: float
    environment: tuple[tuple[str, str], ...] = ()
    skip: str = ""


def bench(*arguments: str, standin: bool, results: Path, cache: Path) -> tuple[str, ...]:
    """Return a benchmark's command with its results in ``results``."""
    where = () if standin and results == ROOT / "output" / "bench" else ("--results", str(results))
    extra = ("--standin",) if standin else ("--cache", str(cache))
    return (sys.executable, "-m", "kernels.benchmark", *arguments, *where, *extra)


def steps(options: argparse.Namespace, results: Path) -> list[Step]:
    """Return all steps, the most valuable first."""
    cache = ROOT / ".cache" / "bench-kernels"
    standin = options.standin
    budget = options.budget

    def ours(*arguments: str) -> tuple[str, ...]:
        return bench(*arguments, standin=standin, results=results, cache=cache)

    found = [Step("smoke", "smoke", ours("--smoke"), 240 if standin else 180)]
    if options.smoke:
        return found
    quiet = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/kernels")
    environment = (("GPU_STANDIN", "1"), ("TRITON_INTERPRET", "1")) if standin else (("REQUIRE_GPU", "1"),)
    bench_seconds = budget * (0.5 if len(options.parts) > 2 else 0.95)
    found += [
        Step("bench", "benchmark", ours("--budget", f"{bench_seconds:.0f}"), bench_seconds + 60),
        Step("tests", "tests", quiet, 600, environment),
        # Some three minutes on a card; a stand-in tries the path on its smallest cell.
        Step("heads", "heads", ours("--heads", *(("--only", "small") if standin else ("--budget", "280"))), 300),
    ]
    found.append(Step("msfp", "msfp", ours("--msfp", *(() if standin else ("--budget", "200"))), 260))
    sizes = (("wan2.1-14b", "720p", "15%"), ("wan2.1-1.3b", "480p", "15%"), ("wan2.1-14b", "720p", "balanced"))
    for model, resolution, schedule in sizes[: 1 if standin else 3]:
        named = ("--model", model, "--resolution", resolution, "--schedule", schedule, "--linears", "fp8")
        compiled = () if standin else ("--compile",)
        found.append(Step("model", f"step-{model}-{schedule}", ours(*named, *compiled), 600))
    train = (sys.executable, "-m", "training.throughput")
    if standin:
        train += ("--problem", "small", "--device", "cpu", "--rounds", "2", "--results", str(results / "train"))
    else:
        train += ("--problem", "1.3b", "--device", "cuda", "--seconds", "240")
        train += ("--results", str(options.results / "train")) if options.results else ()
    found.append(Step("train", "training-step", train, 600))
    found.append(Step("tune", "tune", ours("--tune"), 600))
    tool = shutil.which("compute-sanitizer")
    small = (sys.executable, "tests/gpu/small.py")
    if standin:
        found.append(Step("sanitize", "small", small, 200, environment))
    else:
        why = "" if tool else "compute-sanitizer is not installed"
        for check in ("memcheck", "racecheck"):
            command = (tool or "", "--tool", check, "--error-exitcode", "9", *small)
            # Torch's caching would hide an access beyond a tensor inside a larger block.
            uncached = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
            found.append(Step("sanitize", f"sanitizer-{check}", command, 420, uncached, skip=why))
    found.append(Step("report", "report", (), 120))
    return [step for step in found if step.part in options.parts]


def run(step: Step, seconds: float) -> dict:
    """Run one step and return what happened; its output is shown and its end is kept."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **dict(step.environment)}
    start = time.monotonic()
    child = subprocess.Popen(
        step.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = child.communicate(timeout=seconds)
        status = "ok" if child.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        end(child, gently=True)
        try:
            output, _ = child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            end(child, gently=False)
            output, _ = child.communicate()
        status = "timeout"
    print(output, flush=True)
    return {"status": status, "seconds": round(time.monotonic() - start, 1), "end": output[-TAIL:]}


def end(child: subprocess.Popen, *, gently: bool) -> None:
    """Ask a step and all that it started to end, or end them."""
    if not hasattr(os, "killpg"):  # Windows has no process groups to kill
        child.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM if gently else signal.SIGKILL)


def main() -> int:
    """Run the steps that the command line names and return the exit code: 0 if each was right or left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="only what runs first")
    parser.add_argument("--standin", action="store_true", help="on a CPU, small")
    parser.add_argument("--budget", type=float, default=1500.0, help="seconds in all (default 1500)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--results", type=Path, help="folder of the results (default kernels/results)")
    options = parser.parse_args()
    options.parts = [part for part in options.parts.split(",") if part]
    unknown = set(options.parts) - set(PARTS)
    if unknown or not options.budget > 0:
        text = f"'{min(unknown)}' is no part; name some of {', '.join(PARTS)}" if unknown else "--budget is seconds"
        print(f"suite: {text}.", file=sys.stderr)
        return 2
    results = options.results or ROOT / ("output/bench" if options.standin else "kernels/results")
    results.mkdir(parents=True, exist_ok=True)
    if options.standin:
        # A stand-in tries the code as it is now: nothing of an earlier one is taken over.
        for old in results.glob("standin-*.json"):
            old.unlink()
    record = results / f"suite-{'smoke' if options.smoke else 'all'}.json"
    summary: dict = {"purpose": "suite", "standin": options.standin, "steps": {}}
    began = time.monotonic()
    for step in steps(options, results):
        left = options.budget - (time.monotonic() - began)
        if step.part == "report":
            found = newest(results, unpublished=True)
            if found is None:
                summary["steps"][step.name] = {"status": "skipped", "reason": "there is no benchmark result"}
                continue
            keep = options.results or published(found[1]) is not None
            command = (sys.executable, "-m", "kernels.benchmark", "--report", str(found[0]))
            command += () if keep else ("--readme",)
            step = Step(step.part, step.name, command, step.limit)
            left = max(left, 60.0)
        if step.skip or left < 20:
            summary["steps"][step.name] = {"status": "skipped", "reason": step.skip or "the budget is spent"}
        else:
            print(f"== {step.name}", flush=True)
            summary["steps"][step.name] = run(step, min(step.limit, left))
        record.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    record.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name, result in summary["steps"].items():
        print(f"{name}: {result['status']} {result.get('reason', '')} {result.get('seconds', '')}".rstrip())
    return 0 if all(result["status"] in ("ok", "skipped") for result in summary["steps"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
