"""Figures as inline SVG. Colours are CSS variables of the page, so that one drawing serves light,
dark and print; text stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_SIZE = (4.7, 3.4)  # inches: on a telephone a point is about a pixel
# Placeholder colours, which are replaced by CSS variables of the page.
_INK, _SOFT, _LINE = "#010203", "#010204", "#010205"
_SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
_VARIABLES = {_INK: "--ink", _SOFT: "--soft", _LINE: "--line"} | {
    colour: f"--c{number}" for number, colour in enumerate(_SERIES, start=1)
}
MAX_SERIES = len(_SERIES)  # series that can be told apart
_MARKERS = "osD^vP"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of files may hold $
    "font.size": 11,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "text.color": _INK,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 10,
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing, its title and its caption."""

    svg: str
    title: str
    caption: str


def _draw(name: str, title: str, caption: str, plot: Callable[[Any], None]) -> Chart:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        plot(figure.add_subplot())
        text = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    return Chart(svg=_inline(text.getvalue(), name, title), title=title, caption=caption)


def _inline(svg: str, name: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # Prefixed ids: a page has several drawings.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = re.search(r"<svg[^>]*>", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert head and box, "matplotlib writes both"  # noqa: PT018 - one fact
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{box[0]} role="img" aria-label="{label}">{svg[head.end() :].strip()}'
    )


def lines(
    name: str,
    title: str,
    caption: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    notes: Sequence[tuple[float, float, str]] = (),
    flat: tuple[float, str] | None = None,
    from_zero: bool = False,
    whole_x: bool = False,
) -> Chart:
    """Lines with markers.

    Args:
        series: xs and ys by name. notes: text at points. flat: a horizontal line and its label.
        log_x, log_y: logarithmic axes. from_zero: y starts at 0. whole_x: whole numbers
            only on the x axis.
    """

    def plot(axes: Any) -> None:
        for number, (label, (xs, ys)) in enumerate(series.items()):
            colour = _SERIES[number % len(_SERIES)]
            few = len(xs) <= 40
            marker = _MARKERS[number % len(_MARKERS)] if few else None
            axes.plot(xs, ys, marker=marker, color=colour, label=label, clip_on=False, zorder=3)
        for at, height, word in notes:
            axes.annotate(
                word, (at, height), xytext=(0, 7), textcoords="offset points",
                ha="center", fontsize=9, color=_SOFT,
            )  # fmt: skip
        if flat is not None:
            axes.axhline(flat[0], color=_SOFT, linestyle="--", linewidth=1.2, label=flat[1])
        _axes(axes, x, y, log_x=log_x, log_y=log_y, whole_x=whole_x)
        if from_zero:
            axes.set_ylim(bottom=0)
        if len(series) > 1 or flat is not None:
            axes.legend(loc="best")

    return _draw(name, title, caption, plot)


def _axes(
    axes: Any, x: str, y: str, *, log_x: bool = False, log_y: bool = False, whole_x: bool = False
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel(x)
    axes.set_ylabel(y)
    for axis, log in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        if log:
            axis.axes.set(**{f"{axis.axis_name}scale": "log"})
            axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def tick(value: float) -> str:
    """A number on an axis."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:g}"


def band(
    name: str, title: str, caption: str, values: Floats, *, x: str, y: str, level: float, word: str
) -> Chart:
    """Median and range over the rows of values [M, n], and a horizontal line at ``level``."""

    def plot(axes: Any) -> None:
        n = np.arange(1, values.shape[1] + 1)
        axes.fill_between(
            n, values.min(axis=0), values.max(axis=0), color=_SERIES[0], alpha=0.25, linewidth=0,
            label="all sub-codebooks",
        )  # fmt: skip
        axes.plot(n, np.median(values, axis=0), color=_SERIES[0], label="their median")
        axes.axhline(level, color=_SOFT, linestyle="--", linewidth=1.2, label=word)
        _axes(axes, x, y)
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper right")

    return _draw(name, title, caption, plot)


def ranked(
    name: str, title: str, caption: str, groups: Mapping[str, Sequence[float]], *, x: str, y: str
) -> Chart:
    """Values of each group, best first, over the percentile."""

    def plot(axes: Any) -> None:
        for number, (label, values) in enumerate(groups.items()):
            down = np.sort(np.asarray(values))[::-1]
            share = (np.arange(len(down)) + 0.5) / len(down)
            axes.plot(100 * share, down, color=_SERIES[number], label=f"{label} ({len(down):,})")
        _axes(axes, x, y)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 1.02)
        axes.legend(loc="lower left")

    return _draw(name, title, caption, plot)


def bars(
    name: str,
    title: str,
    caption: str,
    counts: Mapping[str, float],
    *,
    x: str,
    y: str,
    log_x: bool = False,
) -> Chart:
    """A horizontal bar for each label, top down, with its count beside it."""

    def plot(axes: Any) -> None:
        size = min(11, 200 / max(len(counts), 1))  # points: that labels do not overlap
        left = 0.7 if log_x else 0.0  # a bar of one is seen
        axes.barh(range(len(counts)), [*counts.values()], color=_SERIES[0], height=0.7)
        for number, value in enumerate(counts.values()):
            axes.annotate(
                f"{value:,.0f}", (max(value, left), number), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=size, color=_SOFT,
            )  # fmt: skip
        _axes(axes, x, y, log_x=log_x, whole_x=not log_x)
        axes.set_yticks(range(len(counts)), [*counts], fontsize=size)
        axes.set_ylim(max(len(counts), 6) - 0.5, -0.5)  # few bars are not thick
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.set_xlim(left=left)

    return _draw(name, title, caption, plot)


def scatter(
    name: str,
    title: str,
    caption: str,
    points: Sequence[tuple[float, float]],
    *,
    x: str,
    y: str,
    levels: Sequence[tuple[float, str]] = (),
) -> Chart:
    """Points, and horizontal lines to compare them with."""

    def plot(axes: Any) -> None:
        xs, ys = zip(*points, strict=True)
        # Jitter: points of one version would hide each other.
        jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(xs))
        axes.plot(
            np.asarray(xs) + jitter, ys, "o", color=_SERIES[0], alpha=0.6, markersize=4.5,
            label="a shard",
        )  # fmt: skip
        for number, (value, word) in enumerate(levels):
            style = "--" if not number else ":"
            axes.axhline(value, color=_SERIES[number + 1], linestyle=style, label=word)
        _axes(axes, x, y, whole_x=True)
        axes.set_xlim(min(xs) - 0.5, max(xs) + 0.5)
        axes.set_ylim(0, 1.15 * max([*ys, *(value for value, _ in levels)]))
        axes.legend(loc="best")

    return _draw(name, title, caption, plot)
