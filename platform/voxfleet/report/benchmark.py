"""Measured speeds as a table and a plot. Rows are those of ``train/speed.py``."""

from typing import Any

import matplotlib.pyplot as plt

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
    rates = [row["matrix_tflops"] for row in rows]
    precisions = ", ".join(sorted({row["precision"] for row in rows}))
    return [
        *lines,
        f"matrix product, {precisions}: {min(rates):.3g} to {max(rates):.3g} TFLOP/s on {rows[0]['device']}",
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
    """A panel of bars for each kind of work: the share of the matrix rate, and samples/s written on each bar."""
    works = list(dict.fromkeys(row["work"] for row in rows))
    most = max(sum(row["work"] == work for row in rows) for work in works)
    size = (7.5, 1.0 + (0.32 * most + 0.9) * len(works))
    canvas, axes = plt.subplots(len(works), 1, figsize=size, squeeze=False, sharex=True)
    for axis, work in zip(axes[:, 0], works, strict=True):
        chosen = [row for row in rows if row["work"] == work]
        colours = dict(zip(dict.fromkeys(row["network"] for row in chosen), ("C0", "C1", "C2"), strict=False))
        shares = [row["share"] or 0.0 for row in chosen]
        axis.barh(range(len(chosen)), shares, color=[colours[row["network"]] for row in chosen], height=0.7)
        for place, (row, share) in enumerate(zip(chosen, shares, strict=True)):
            text = "out of memory" if row["seconds"] is None else f" {row['samples_per_s']:.3g}/s"
            axis.text(share, place, text, va="center", fontsize=7)
        names = [f"{row['network']}, {row['mode']}, {_times(row['input_size'])} x{row['batch_size']}" for row in chosen]
        axis.set_yticks(range(len(chosen)), names, fontsize=7)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(work, fontsize=9, loc="left")
        axis.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel(f"share of the matrix rate of {rows[0]['device']}", fontsize=8)
    canvas.tight_layout()
    return png(canvas)
