"""A picture of what a segmenter finds."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from voxfleet.report.figures import png

_TRUE, _FOUND = "#f2c14e", "#3fa7d6"


def contours(volumes: np.ndarray, true: np.ndarray, found: np.ndarray, titles: Sequence[str]) -> bytes:
    """The coronal slice that shows most of the true hippocampi, with their outlines and those that were found, as PNG.

    Args:
        volumes: (n, D, H, W) in [0, 1].
        true: (n, D, H, W), the share of each voxel that the hippocampi fill.
        found: (n, D, H, W), the same as predicted.
        titles: of the volumes.
    """
    figure, axes = plt.subplots(1, len(volumes), figsize=(2.4 * len(volumes), 3.1), squeeze=False)
    for axis, volume, truth, share, title in zip(axes[0], volumes, true, found, titles, strict=True):
        place = int(truth.sum(axis=(0, 2)).argmax())
        axis.imshow(volume[:, place].T, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="bicubic")
        for shares, colour in ((truth, _TRUE), (share, _FOUND)):
            if shares[:, place].max() > 0.5:
                axis.contour(shares[:, place].T, levels=[0.5], colors=[colour], linewidths=1.2)
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
    handles = [plt.Line2D([], [], color=colour) for colour in (_TRUE, _FOUND)]
    figure.legend(handles, ["label map", "segmenter"], loc="lower center", ncols=2, fontsize=8, frameon=False)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.1, wspace=0.03)
    return png(figure)
