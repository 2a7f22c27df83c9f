"""How figures look, and how they become SVG text whose bytes depend on their content alone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#4D4D4D")
"""Okabe and Ito's colours (yellow left out: too pale on white); told apart with every common colour vision."""
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
INK, MUTED, RULE = "#1b1f24", "#57606a", "#d8dee4"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "avcl",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eaeef2",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "figure.constrained_layout.use": True,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style over matplotlib's defaults, whatever the user's own settings are."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def look(index: int) -> dict[str, Any]:
    """Return colour, marker and line style number ``index``: never colour alone."""
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def to_svg(figure: Figure) -> str:
    """Return the figure as an SVG document without metadata (date, creator), its ids made from content alone."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    # Names of drawing groups repeat between figures on one page, and nothing refers to them.
    text = re.sub(r'<g id="[a-zA-Z0-9]+_\d+">', "<g>", buffer.getvalue())
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def inline(svg: str, label: str) -> str:
    """Return the ``<svg>`` element of a document for a page, labelled for screen readers. ``label`` is escaped."""
    from markupsafe import escape

    element = svg[svg.index("<svg") :]
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def panels(count: int, height: float, width: float = 11.4, most: int = 3) -> tuple[Figure, list[Axes]]:
    """Return a figure with ``count`` axes, at most ``most`` in a row; ``height`` in inches per row."""
    across = min(count, most)
    down = -(-count // across)
    figure = Figure(figsize=(width, height * down))
    axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]
