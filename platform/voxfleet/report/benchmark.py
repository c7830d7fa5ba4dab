"""Measured speeds as a table and a plot. Rows are those of ``train/speed.py``."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from voxfleet.report.figures import png

Row = dict[str, Any]

_COLUMNS = (
    *("work", "network", "mode", "latents", "patch"),
    *("tokens", "batch", "samples/s", "µs/token", "TFLOP/s", "share"),
)


def table(rows: list[Row]) -> list[str]:
    """Lines of aligned columns; ``share`` is that of the device's matrix rate, named in the last line."""
    cells = [list(_COLUMNS), *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            text.ljust(width) if column < 5 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    limits: dict[str, list[float]] = {}
    for row in rows:
        if row["matrix_tflops"] is not None:
            limits.setdefault(f"{row['precision']} on {row['device']}", []).append(row["matrix_tflops"])
    return lines + [
        f"matrix product in {what}: {min(rates):.3g} to {max(rates):.3g} TFLOP/s" for what, rates in limits.items()
    ]


def _cells(row: Row) -> list[str]:
    names = [row["work"], row["network"], row["mode"], _times(row["input_size"]), _times(row["patch_size"])]
    numbers = [row["tokens"], row["batch_size"]]
    if row["seconds"] is None:
        return [*names, *("" if n is None else str(n) for n in numbers), "out of memory", "", "", ""]
    measured = [row["samples_per_s"], row["us_per_token"], row["tflops"]]
    return [
        *names,
        *("" if number is None else str(number) for number in numbers),
        *("" if number is None else f"{number:.4g}" for number in measured),
        f"{row['share']:.2f}",
    ]


def _times(edges: list[int] | None) -> str:
    return "x".join(map(str, edges)) if edges else ""


def figure(rows: list[Row]) -> bytes:
    """A panel of bars for each kind of work, and where grids differ, one of the time a token."""
    works = {name: [row for row in rows if row["work"] == name] for name in dict.fromkeys(row["work"] for row in rows)}
    heights = [0.7 + 0.36 * len(chosen) for chosen in works.values()]
    grids = [row for row in rows if row["us_per_token"]]
    if len({row["tokens"] for row in grids}) > 1:
        heights.append(2.6)
    size = (7.5, 0.6 + sum(heights))
    canvas, axes = plt.subplots(len(heights), 1, figsize=size, squeeze=False, height_ratios=heights)
    for axis, (work, chosen) in zip(axes[:, 0], works.items(), strict=False):
        _bars(axis, work, chosen)
    if len(heights) > len(works):
        _per_token(axes[-1, 0], grids)
    canvas.tight_layout()
    return png(canvas)


def _bars(axis: Axes, work: str, rows: list[Row]) -> None:
    """The share of the matrix rate, with samples/s written at the end of each bar."""
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(row["network"] for row in rows))}
    shares = [row["share"] or 0.0 for row in rows]
    axis.barh(range(len(rows)), shares, color=[colours[row["network"]] for row in rows], height=0.7)
    for place, (row, share) in enumerate(zip(rows, shares, strict=True)):
        text = "out of memory" if row["seconds"] is None else f"{row['samples_per_s']:.3g}/s"
        axis.text(share, place, f" {text}", va="center", fontsize=7)
    axis.set_yticks(range(len(rows)), [_name(row) for row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.set_title(f"{work}: share of the matrix rate, {rows[0]['device']}", fontsize=8, loc="left")
    axis.grid(axis="x", alpha=0.3)


def _name(row: Row) -> str:
    patch = f" / {_times(row['patch_size'])}" if row["patch_size"] else ""
    return f"{row['network']}, {row['mode']}\n{_times(row['input_size'])}{patch}, batch {row['batch_size']}"


def _per_token(axis: Axes, rows: list[Row]) -> None:
    """The time a token against the tokens of a sample, a line for each work, network and mode."""
    for name in dict.fromkeys((row["work"], row["network"], row["mode"]) for row in rows):
        points = sorted(
            (row["tokens"], row["us_per_token"]) for row in rows if (row["work"], row["network"], row["mode"]) == name
        )
        axis.loglog(*zip(*points, strict=True), marker=".", lw=1.2, label=", ".join(name))
    tokens = sorted({row["tokens"] for row in rows})
    axis.set_xticks(tokens, [f"{number:,}" for number in tokens])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(labelsize=7, which="both")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("tokens of a sample", fontsize=8)
    axis.set_ylabel("µs a token", fontsize=8)
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
