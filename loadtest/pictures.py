"""Pictures of load: figures in, SVG out. The same figures give the same bytes."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN = 7.2, 3.2
LEGEND_COLUMNS = 3
COLOURS = ("#1f6feb", "#d1242f", "#8250df", "#bf8700", "#1a7f37", "#57606a", "#cf5c9c")


@dataclass(frozen=True, slots=True)
class Line:
    """
    One line of a picture.

    Attributes:
        xs, ys: Points; a y of None leaves a gap.
        spread: Least and greatest of each point.
        quiet: Drawn thin and grey: a line to compare with.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    spread: Sequence[tuple[float, float]] | None = None
    quiet: bool = False


def lines(title: str, found: Sequence[Line], *, x: str, y: str, log_x: bool = False) -> str:
    """
    Lines over one another.

    Args:
        title: Above the picture.
        found: The lines.
        x: What the horizontal axis is, with its unit.
        y: What the vertical axis is, with its unit.
        log_x: Whether the horizontal axis is logarithmic.
    """
    figure, axes = _empty(title, x=x, y=y)
    for line, colour in zip(found, _colours(found), strict=True):
        ys = [float("nan") if value is None else value for value in line.ys]
        style = {"linestyle": "--", "linewidth": 1.0} if line.quiet else {"linewidth": 1.8}
        marker = "o" if len(line.xs) < 20 and not line.quiet else None  # noqa: PLR2004 - more would be a blur
        axes.plot(line.xs, ys, color=colour, label=line.name, marker=marker, markersize=4, **style)
        if line.spread:
            low, high = zip(*line.spread, strict=True)
            axes.fill_between(line.xs, low, high, color=colour, alpha=0.15, linewidth=0)
    if log_x:
        axes.set_xscale("log")
        ticks = sorted({value for line in found for value in line.xs})
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
    known = [y for line in found for y in line.ys if y is not None]
    known += [high for line in found for _, high in line.spread or ()]
    axes.set_ylim(0, max(known, default=0.0) * 1.08 or 1.0)
    if any(line.name for line in found):
        _legend(figure)
    return _svg(figure)


def stacked(
    title: str,
    xs: Sequence[float],
    counts: Mapping[str, Sequence[float]],
    *,
    x: str,
    y: str,
    colours: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """
    Bars on top of one another.

    Args:
        title: Above the picture.
        xs: Where each bar begins; they are as wide as they are apart.
        counts: The heights of each kind.
        x: What the horizontal axis is, with its unit.
        y: What the vertical axis is, with its unit.
        colours: Of some of the kinds; the others get what comes.
    """
    figure, axes = _empty(title, x=x, y=y)
    width = xs[1] - xs[0] if len(xs) > 1 else 1.0
    bottom = [0.0] * len(xs)
    for n, (name, heights) in enumerate(counts.items()):
        axes.bar(
            xs, heights, width, bottom=bottom, align="edge",
            color=colours.get(name, COLOURS[n % len(COLOURS)]), label=name, linewidth=0,
        )  # fmt: skip
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    if counts:
        _legend(figure)
    return _svg(figure)


def _legend(figure: Figure) -> None:
    """Below the picture, where it hides nothing."""
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=LEGEND_COLUMNS)


def _empty(title: str, *, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colours(found: Sequence[Line]) -> list[str]:
    """Its own for each line; grey for the quiet ones."""
    own = iter(COLOURS * (len(found) // len(COLOURS) + 1))
    return ["#8c959f" if line.quiet else next(own) for line in found]


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    # Neither a date nor random ids: a picture in the repository changes only with its figures.
    with mpl.rc_context({"svg.hashsalt": "tidegate", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
