"""Figures as PNG bytes."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure


def middle_slices(volume: np.ndarray) -> list[np.ndarray]:
    """The middle sagittal, coronal and axial slice of a RAS volume (D, H, W), turned upright."""
    return [np.rot90(np.take(volume, volume.shape[axis] // 2, axis=axis)) for axis in range(3)]


def mosaic(volumes: np.ndarray, titles: Sequence[str]) -> bytes:
    """Middle slices in three planes (rows) of volumes (n, D, H, W) in [0, 1] (columns, with titles)."""
    figure, axes = plt.subplots(3, len(volumes), figsize=(1.5 * len(volumes), 4.9), squeeze=False)
    for column, (volume, title) in enumerate(zip(volumes, titles, strict=True)):
        axes[0, column].set_title(title, fontsize=8)
        for row, image in enumerate(middle_slices(volume)):
            axes[row, column].imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.subplots_adjust(left=0.005, right=0.995, top=0.93, bottom=0.005, wspace=0.03, hspace=0.03)
    return png(figure)


def loss_curves(history: list[dict[str, float]], title: str) -> bytes:
    """Training and validation measures of a run against the step, one panel a measure."""
    names = sorted({key for point in history for key in point} - {"step", "lr"})
    losses = tuple(name for name in names if "loss" in name)
    panels = [losses, *((name,) for name in names if name not in losses)]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 2.8), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for name in panel:
            points = [(point["step"], point[name]) for point in history if name in point]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, lw=1.2, marker="." if len(points) < 30 else "")
        axis.set_xlabel("step")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
        if panel == losses:
            axis.set_yscale("log")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as PNG; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
