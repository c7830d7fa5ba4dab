"""Pictures of where a classifier looks."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np

from voxfleet.report.figures import png


def overlays(rows: Mapping[str, tuple[np.ndarray, Mapping[str, np.ndarray]]], hippocampi: np.ndarray | None) -> bytes:
    """Mean maps over the mean anatomy, as PNG: a row for each title, three planes for each way.

    All maps of a way have one colour scale, so that rows compare. Planes go through the middle of the hippocampi where
    these are known (outlined), else through that of the volume.

    Args:
        rows: by title the mean anatomy (D, H, W) in [0, 1], and the mean maps (D, H, W) by way.
        hippocampi: (D, H, W), the mean share of each voxel that they fill.
    """
    ways = list(next(iter(rows.values()))[1])
    most = {way: max(np.quantile(maps[way], 0.999) for _, maps in rows.values()) for way in ways}
    places = _places(hippocampi, next(iter(rows.values()))[0].shape)
    columns = [(way, axis) for way in ways for axis in range(3)]
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(1.75 * len(columns), 1.95 * len(rows) + 0.3), squeeze=False
    )
    for line, (title, (anatomy, maps)) in zip(axes, rows.items(), strict=True):
        for axis, (way, plane) in zip(line, columns, strict=True):
            head, found = (_slice(x, plane, places) for x in (anatomy, maps[way]))
            axis.imshow(head, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
            strength = np.clip(found / max(most[way], 1e-12), 0, 1)
            axis.imshow(strength, cmap="inferno", alpha=0.75 * strength, vmin=0, vmax=1, interpolation="bicubic")
            if hippocampi is not None:
                _outline(axis, _slice(hippocampi, plane, places))
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_visible(False)
            if line is axes[0]:
                axis.set_title(way if plane == 1 else "", fontsize=9)
        line[0].set_ylabel(title, fontsize=8)
    figure.subplots_adjust(left=0.03, right=0.995, top=0.93, bottom=0.01, wspace=0.03, hspace=0.04)
    return png(figure)


def _places(hippocampi: np.ndarray | None, shape: Sequence[int]) -> list[int]:
    """Of the slices: the left hippocampus sagittally, the middle of both in the other planes."""
    if hippocampi is None or not hippocampi.any():
        return [edge // 2 for edge in shape]
    profiles = [hippocampi.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    return [int(profiles[0][: shape[0] // 2].argmax()), *(int(p.argmax()) for p in profiles[1:])]


def _slice(volume: np.ndarray, axis: int, places: Sequence[int]) -> np.ndarray:
    return np.rot90(np.take(volume, places[axis], axis=axis))


def _outline(axis: plt.Axes, share: np.ndarray) -> None:
    if share.max() > 0.3:
        axis.contour(share, levels=[0.3], colors=["#3fd6c4"], linewidths=0.8)
