"""Frames of several videos in one picture."""

from __future__ import annotations

import io

import numpy as np
import torch


def contact_sheet(rows: dict[str, torch.Tensor], columns: int = 6) -> torch.Tensor:
    """Return a picture uint8 (H, W, 3): one row of frames per video, uint8 (T, H, W, 3), under its title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = next(iter(rows.values())).shape[1:3]
    columns = min(columns, max(len(video) for video in rows.values()))
    each = max(1.1, min(2.0, 12 / columns))
    tall = each * height / width
    figure = Figure(figsize=(each * columns, (tall + 0.26) * len(rows)))
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, video) in zip(axes, rows.items()):
        times = torch.linspace(0, len(video) - 1, columns).round().long().tolist()
        for axis, time in zip(line, times):
            axis.imshow(video[time].numpy())
            axis.set_axis_off()
        line[0].set_title(title, loc="left", fontsize=8, pad=3)
    top = 1 - 0.22 / figure.get_figheight()
    figure.subplots_adjust(left=0.005, right=0.995, top=top, bottom=0.005, wspace=0.02, hspace=0.24 / tall)
    figure.set_dpi(110)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[:, :, :3].copy())


def png(picture: torch.Tensor) -> bytes:
    """Return a picture uint8 (H, W, 3) as a PNG file's content."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture.numpy()).save(out, "PNG", optimize=True)
    return out.getvalue()
