"""What the benchmark node does around the measurement: size, text, picture, the file, the bar and the route."""

from __future__ import annotations

import json
import math
import sys
import types
from dataclasses import replace

import pytest
import torch
from fpsattention.kernels.bench.timing import Timing
from fpsattention.kernels.calibration import Calibration
from fpsattention.kernels.calibration_file import ENVIRONMENT
from fpsattention.kernels.checkpoint import Header
from fpsattention.kernels.contestants import Ours, Row, Size
from fpsattention.kernels.grid import TokenGrid
from fpsattention.kernels.measure import Measurement, measure
from fpsattention.kernels.schedule import Schedule
from fpsattention.nodes import benchmark_run, routes
from fpsattention.nodes import host as host_side
from fpsattention.nodes.benchmark_image import benchmark_image, digits, nice_step
from fpsattention.nodes.benchmark_run import Kept, Ticker, effort_problem, keep, model_notes, wanted_size
from fpsattention.nodes.benchmark_text import benchmark_text, headline
from fpsattention.nodes.drawing import WIDTH
from fpsattention.nodes.model_facts import model_facts
from fpsattention.nodes.patch import apply_patch
from fpsattention.nodes.settings import choose_settings


@pytest.fixture(autouse=True)
def calibration(monkeypatch, tmp_path):
    path = tmp_path / "calibration.json"
    monkeypatch.setenv(ENVIRONMENT, str(path))
    return path


@pytest.fixture(scope="module")
def small() -> Measurement:
    return measure(Size(TokenGrid(3, 6, 8), 2, 128, torch.float32, torch.device("cpu"), seconds=5))


def made(dense=(12.0,), ours=((1.0, 9.0), (0.3, 4.0), (0.1, 1.5)), notes=()) -> Measurement:
    """A measurement with the medians given."""
    size = Size(TokenGrid(21, 45, 80), 40, 128, torch.bfloat16, torch.device("cpu"))
    rows = [
        Row(f"dense{i}", "dense", 1.0, timing=Timing(ms, ms * 0.9, ms * 1.1, ms * 0.9, 9)) for i, ms in enumerate(dense)
    ]
    rows += [Row("triton-fp8", "ours", d, "all 9 9", Timing(ms, ms, ms, ms, 9)) for d, ms in ours]
    kind = Ours("triton-fp8", "fp8", "x1")
    return Measurement(size, size, rows, list(notes), "Card", kind, host="dense0", date="2026-11-21T20:00:00+00:00")


def test_the_ratio_is_against_the_strongest_dense():
    result = made(dense=(12.0, 8.0))
    assert result.speedup(result.ours()[-1]) == pytest.approx(8.0 / 1.5)
    assert (
        headline(result)
        == "Speed against dense: dense1 on Card: 2.0 times as fast at 30% density, 5.3 times as fast at 10%."
    )
    slow = made(dense=(12.0,), ours=((0.33, 1200.0), (0.1, 12.1)))
    assert headline(slow).endswith("on Card: 100 times slower at 33% density, about as fast at 10%.")
    # Dense steps run the host's own, so that is what is kept.
    assert result.entry()["dense_ms"] == 12.0 and result.entry()["dense_backend"] == "dense0"


@pytest.mark.parametrize(
    "result, words",
    [
        (made(ours=()), "FPSAttention was not measured"),
        (made(dense=()), "no speedup to tell"),
        (made(ours=((0.1, 1.5),)), "8.0 times as fast at 10% density."),
        (made(dense=(), ours=()), "was not measured"),
    ],
)
def test_what_is_missing_is_said(result, words):
    assert words in headline(result)
    assert benchmark_text(result, "video", "Kept.") and benchmark_image(result, "video", "Kept.").isfinite().all()


def test_text_has_every_row_and_condition(small):
    text = benchmark_text(small, "128 x 96, 9 frames", "Kept in x.")
    assert sum(line.startswith(("dense: ", "FPSAttention: ")) for line in text.splitlines()) == len(small.rows)
    assert "grid 3x6x8 = 144 tokens, 2 heads of 128, batch 1, float32" in text and torch.__version__ in text
    assert "include quantization" in text and "Kept in x." in text and "expected ms" not in text


def test_a_part_is_scaled_to_the_whole():
    result = made()
    result.size = Size(TokenGrid(21, 45, 80), 10, 128, torch.bfloat16, torch.device("cpu"))
    line = next(
        line for line in benchmark_text(result, "video", "").splitlines() if "all 9 9" in line and "100.0%" in line
    )
    assert line.split()[-1] == "36.0"


def test_a_part_that_is_too_small_is_not():
    """From fewer than a quarter of the tokens nothing is told for the whole."""
    result = made()
    result.size = Size(TokenGrid(5, 45, 80), 1, 128, torch.bfloat16, torch.device("cpu"))
    assert not result.near and "expected ms" not in benchmark_text(result, "video", "")
    result.size = Size(TokenGrid(6, 45, 80), 1, 128, torch.bfloat16, torch.device("cpu"))
    assert result.near and "expected ms" in benchmark_text(result, "video", "")


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
@pytest.mark.parametrize("long", [False, True])
def test_the_picture_holds_any_time(scale, long):
    result = made((12 * scale, 8 * scale), [(d, ms * scale) for d, ms in ((1.0, 9.0), (0.3, 4.0), (0.1, 1.5))])
    if long:
        result.rows[2].timing, result.rows[2].note = None, "failed: " + "words " * 80
        result.notes += ["a note " * 60] * 3
    image = benchmark_image(result, "video", "Kept in " + "a-long-folder-name/" * 20)
    assert image.shape[2:] == (WIDTH, 3) and image.isfinite().all()
    # Nothing is drawn over the right edge.
    assert (image[0, :, -8:] == image[0, 0, 0]).all()


@pytest.mark.parametrize("longest", [1e-3, 0.7, 1.0, 8.0, 8.1, 473.2, 1e6])
def test_axes_have_round_steps(longest):
    assert 2 <= longest / nice_step(longest) <= 8.0001
    assert float(f"{nice_step(longest):.0e}") == pytest.approx(nice_step(longest))
    assert len(f"{longest:,.{digits(longest)}f}".replace(",", "").replace(".", "").lstrip("0")) <= 7


def test_times_are_kept(small, calibration):
    said = keep(small)
    assert said == f"Kept in {calibration} (1 measurement)."
    assert Calibration.load(calibration).entries == [small.entry()]
    keep(made())
    assert "(2 measurements)" in keep(small)
    assert keep(made(ours=())).startswith("Nothing was kept")


def test_times_of_single_calls_are_shown_and_not_kept(calibration):
    single = made(ours=())
    single.rows.append(Row("triton-fp8", "ours", 0.3, "all 9 9", Timing(4.0, 4.0, 4.0, 4.0, 1)))
    assert single.single and not made().single and not made(ours=()).single
    said = keep(single)
    assert said == "Nothing was kept: times of one call each are shown here only; allow more seconds."
    assert not calibration.exists() and "4.000" in benchmark_text(single, "video", said)


def test_a_file_that_cannot_be_kept_is_a_sentence(small, calibration):
    calibration.write_text('{"version": 2}')
    assert keep(small).startswith("The times were not kept: the calibration")
    calibration.write_text("{")
    said = keep(small)
    assert said.startswith("Kept in") and "was damaged" in said and said.count("\n") == 0
    calibration.unlink()
    calibration.mkdir()
    assert keep(small).startswith("The times were not kept")


def test_times_that_are_lost_are_measured_again(small, calibration, monkeypatch):
    monkeypatch.setattr(benchmark_run, "kept", Kept())
    losses = benchmark_run.kept.losses
    assert losses() == 0
    keep(small)
    keep(made())
    assert losses() == losses() == 0, "what is there is shown again"
    calibration.unlink()
    assert losses() == losses() == 1
    keep(small)
    assert losses() == 1
    newer = replace(small, date="2027-01-01T00:00:00+00:00")
    keep(newer)
    assert losses() == 1, "another run with the same key has put newer times there"
    calibration.write_text("{")
    assert losses() == losses() == 2


def test_times_that_could_not_be_written_wait_for_another_file(small, calibration, monkeypatch):
    monkeypatch.setattr(benchmark_run, "kept", Kept())
    calibration.write_text('{"version": 2}')
    keep(small)
    assert benchmark_run.kept.losses() == benchmark_run.kept.losses() == 0, "not 20 s at every run"
    calibration.unlink()
    assert benchmark_run.kept.losses() == benchmark_run.kept.losses() == 1


def test_what_is_measured_of_a_model(host):
    schedule = Schedule.parse("0 fp8 x1 all 5 4")
    header = Header(schedule, slots=128, tile=(3, 5, 8))
    model = apply_patch(host.Patcher(host.WanModel(heads=5)), choose_settings(header, None, "auto"))
    size = wanted_size(832, 480, 81, 12, "auto", 3.0, model_facts(model))
    assert (size.heads, size.head_dim, size.dtype, size.slots, size.tile) == (5, 128, torch.float32, 128, (3, 5, 8))
    assert size.grid.shape == (21, 30, 52) and size.seconds == 3.0
    assert model_notes(model, model_facts(model)) == [] == model_notes(None, None)
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda *a, **k: None
    assert "another node replaces" in model_notes(model, model_facts(model))[0]
    alone = wanted_size(832, 480, 81, 12, "auto", 3.0, None)
    assert (alone.heads, alone.head_dim, alone.tile) == (12, 128, None)


@pytest.mark.parametrize(
    "heads, seconds, words",
    [(0, 1.0, "heads is 0"), (1.5, 1.0, "heads is 1.5"), (999, 1.0, "from 1 to 256"), (1, math.nan, "seconds is nan"),
     (1, 0, "seconds is 0"), (1, 1e9, "from 0.5 to 600"), (1, "x", "seconds is 'x'"), (1, True, "seconds is True")],
)  # fmt: skip
def test_effort_that_cannot_be(heads, seconds, words):
    problem = effort_problem(heads, seconds)
    assert words in problem and problem.endswith(".")
    assert effort_problem(12, 20) is None and effort_problem() is None


def test_the_bar_only_moves_forward():
    moves = []
    ticker = Ticker(types.SimpleNamespace(update=moves.append))
    for share in (0.0, 0.3, 0.2, 0.3, 0.999, 1.0, 2.0):
        ticker(share)
    assert sum(moves) == Ticker.PARTS and min(moves) >= 0


def test_cancel_reaches_the_measurement(monkeypatch):
    class Interrupted(Exception):  # noqa: N818
        pass

    def interrupted():
        raise Interrupted

    module = types.ModuleType("comfy.model_management")
    module.throw_exception_if_processing_interrupted = interrupted
    package = types.ModuleType("comfy")
    package.model_management = module
    monkeypatch.setitem(sys.modules, "comfy", package)
    monkeypatch.setitem(sys.modules, "comfy.model_management", module)
    with pytest.raises(Interrupted):
        Ticker(types.SimpleNamespace(update=lambda n: None))(0.5)


def test_room_is_made_on_a_card_only(monkeypatch):
    asked = []
    module = types.ModuleType("comfy.model_management")
    module.free_memory = lambda size, device: asked.append((size, device))
    module.soft_empty_cache = lambda: asked.append("emptied")
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.model_management", module)
    host_side.make_room(10, torch.device("cpu"))
    assert asked == []
    host_side.make_room(10, torch.device("cuda"))
    assert asked == [(10, torch.device("cuda")), "emptied"]


def test_the_route_answers_without_a_driver(calibration, monkeypatch, small):
    keep(small)
    answer = json.loads(json.dumps(routes.answer(), allow_nan=False))
    runs = {"fp8": "reference", "bf16": "reference"}
    known = {"card": small.card, "backends": runs, "version": 1, "entries": [small.entry()], "problem": None}
    assert answer == known
    monkeypatch.setattr(host_side, "host_device", lambda: torch.device("mps"))
    assert routes.answer()["backends"] == {"fp8": None, "bf16": None}
    monkeypatch.setattr(host_side, "host_device", lambda: (_ for _ in ()).throw(RuntimeError("driver too old")))
    assert routes.answer()["card"] is None and routes.answer()["backends"] is None
    calibration.write_text("no")
    assert "was damaged" in routes.answer()["problem"]


def test_the_route_is_registered_once_and_only_on_a_server(monkeypatch):
    routes.register_routes()
    web = pytest.importorskip("aiohttp.web")
    table = web.RouteTableDef()
    server = types.ModuleType("server")
    monkeypatch.setitem(sys.modules, "server", server)
    routes.register_routes()
    server.PromptServer = type("PromptServer", (), {})
    routes.register_routes()
    server.PromptServer.instance = types.SimpleNamespace(routes=table)
    routes.register_routes()
    routes.register_routes()
    assert [(route.method, route.path) for route in table] == [("GET", routes.PATH)]


def test_effort_that_cannot_be_is_a_sentence():
    from fpsattention.nodes.benchmark_run import effort_problem

    for value in (10**400, float("nan"), -1, "20", True, None):
        problem = effort_problem(12, value)
        assert problem is None if value is None else problem.startswith("seconds is ") and len(problem) < 500
