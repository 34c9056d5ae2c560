"""Pictures of heads: the pixels are those of the arrays, bad arrays are a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from fpsattention.kernels.pattern_text import FAMILIES

pytest.importorskip("matplotlib")

from fpsattention.training import headplots
from fpsattention.training.headplots import (
    FAMILY_COLORS,
    PlotError,
    plot_densities,
    plot_families,
    plot_lines,
    plot_maps,
)
from matplotlib.colors import to_rgb
from matplotlib.image import imread


def share_of(picture: np.ndarray, color: str) -> float:
    """Return the share of pixels of one color."""
    return float((np.abs(picture[..., :3] - to_rgb(color)).max(-1) < 0.01).mean())


@pytest.fixture
def figures(monkeypatch):
    """What was drawn, before it became a file."""
    kept = []
    save = headplots.save
    monkeypatch.setattr(headplots, "save", lambda made, path: kept.append(made) or save(made, path))
    return kept


def test_families_have_their_colors_in_proportion(tmp_path, figures):
    words = np.array([["diagonal"] * 6, ["diagonal"] * 3 + ["window"] * 3, ["full"] * 6, ["skip"] * 6])
    path = plot_families(words, tmp_path / "made" / "families.png", title="sigma 0.9")
    picture = imread(path)
    found = {name: share_of(picture, color) for name, color in FAMILY_COLORS.items()}
    assert found["multi-diagonal"] == found["vertical stripe"] == found["union"] == 0
    assert found["diagonal"] > 0.05
    # The legend has a patch of each.
    assert found["window"] / found["diagonal"] == pytest.approx(3 / 9, abs=0.08)
    assert found["full"] / found["diagonal"] == pytest.approx(6 / 9, abs=0.08)
    (axis,) = figures[0].axes
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["full (6)", "skip (6)", "diagonal (9)", "window (3)"]
    assert len(set(FAMILY_COLORS.values())) == len(FAMILIES)


def test_maps_show_frames_and_tiles(tmp_path, figures):
    frames = np.stack([np.eye(5), np.full((5, 5), 0.2)])
    columns = np.stack([np.full(12, 1 / 24), np.eye(12)[7]])
    path = plot_maps(frames, columns, (2, 2, 3), ["near", "stripe " * 20], tmp_path / "maps.png")
    assert imread(path).shape[0] > 100
    near, near_tiles, far, far_tiles = (axis.images[0] for axis in figures[0].axes[:4])
    np.testing.assert_array_equal(near.get_array(), np.eye(5))
    assert far.get_clim()[1] == 0.8
    # Two blocks of 2 x 3 tiles and what lies between them; half the mass on the video is still uniform on it.
    blocks = np.ma.filled(near_tiles.get_array(), np.nan)
    assert np.nansum(blocks == 1) == 12 and np.isnan(blocks).any()
    stripe = np.ma.filled(far_tiles.get_array(), np.nan)
    assert np.nanmax(stripe) == 12 and np.nansum(stripe) == 12
    # Tile 7 is row 0, column 1 of the second block, which lies below the first.
    assert np.argwhere(stripe == 12).tolist() == [[3, 1]]
    titles = [axis.get_title(loc="left") for axis in figures[0].axes[:3:2]]
    assert titles[0] == "near" and titles[1].endswith("…") and len(titles[1]) < 40


@pytest.mark.parametrize("heads", [1, 3, 5, 9])
def test_any_number_of_maps_is_drawn(tmp_path, figures, heads):
    plot_maps(np.ones((heads, 3, 3)), np.ones((heads, 8)), (8, 1, 1), ["x"] * heads, tmp_path / "maps.png")
    assert sum(bool(axis.images) and axis.get_xlabel() == "key frame" for axis in figures[0].axes) == heads


def test_densities_are_colored_by_one_scale_with_their_means(tmp_path, figures):
    values = np.stack([np.zeros((30, 12)), np.ones((30, 12))])
    plot_densities(values, ["1 to 0.5", "0.5 to 0"], tmp_path / "large.png")
    first, second, bar = figures[0].axes
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 100)
    assert "mean 0.0 %" in first.get_title(loc="left") and "mean 100.0 %" in second.get_title(loc="left")
    assert bar.get_ylabel() == "density, %" and not first.texts
    picture = imread(tmp_path / "large.png")
    assert share_of(picture, "#440154") > 0.1 and share_of(picture, "#fde725") > 0.1
    plot_densities(np.array([[[0.25, 1.0]]]), ["all"], tmp_path / "small.png")
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["25", "100"]


def test_lines_are_the_given_ones(tmp_path, figures):
    curves = {f"λ = {i}": ([0.1, 0.5], [1.0 + i, 0.1 + i]) for i in range(14)}
    plot_lines(curves, tmp_path / "lines.png", xlabel="density", ylabel="error", log="y")
    (axis,) = figures[0].axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("linear", "log")
    assert [(line.get_label(), line.get_ydata().tolist()) for line in axis.lines] == [
        (label, list(y)) for label, (_, y) in curves.items()
    ]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axis.lines}
    assert len(looks) == len(curves)


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    values = np.random.default_rng(0).random((1, 4, 3))
    one, two = (plot_densities(values, ["a"], tmp_path / f"{i}.png").read_bytes() for i in range(2))
    assert one == two != plot_densities(values / 2, ["a"], tmp_path / "2.png").read_bytes()


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: plot_maps(np.zeros((0, 3, 3)), np.zeros((0, 8)), (2, 2, 2), [], path),
        lambda path: plot_maps(np.ones((1, 3, 3)), np.ones((1, 7)), (2, 2, 2), ["a"], path),
        lambda path: plot_families(np.array([["stripes"]]), path),
        lambda path: plot_families(np.array(["full"]), path),
        lambda path: plot_densities(np.ones((1, 2)), ["a"], path),
        lambda path: plot_densities(np.ones((2, 2, 2)), ["a"], path),
        lambda path: plot_lines({}, path, xlabel="x", ylabel="y"),
        lambda path: plot_lines({"a": ([1], [1, 2])}, path, xlabel="x", ylabel="y"),
    ],
)
def test_arrays_that_cannot_be_drawn_are_one_sentence(tmp_path, draw):
    with pytest.raises(PlotError) as caught:
        draw(tmp_path / "x.png")
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert not (tmp_path / "x.png").exists()
