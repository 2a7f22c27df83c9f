"""The figure of routing: how close choices were, right ones and wrong ones, one histogram per test set."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from avcl.report.figures import short
from avcl.report.routing import RoutingView, gaps_of
from avcl.report.style import INK, PALETTE, figure_style, panels, to_svg
from avcl_core.evaluation.usage_file import Gaps

_RIGHT = "#9dc3e2"


def routing_figures(view: RoutingView) -> dict[str, str]:
    """Return name → SVG document; nothing where no choice was made between two experts."""
    tests = gaps_of(view)
    if not tests:
        return {}
    with figure_style():
        across = min(4, len(tests))
        figure, all_axes = panels(len(tests), 2.5, width=min(11.4, 2.0 + 2.7 * across), most=4)
        for number, ((test, gap), axes) in enumerate(zip(tests.items(), all_axes, strict=True)):
            _histogram(axes, gap)
            axes.set_title(short(test, 24))
            if number % 4 == 0:
                axes.set_ylabel("samples")
        handles = [Patch(facecolor=_RIGHT), Patch(facecolor=PALETTE[1], edgecolor=INK, hatch="////", linewidth=0.6)]
        figure.legend(handles, ["right choice", "wrong choice"], loc="outside lower left", ncols=2)
        figure.get_layout_engine().set(w_pad=0.12)  # type: ignore[union-attr]
        return {"routing": to_svg(figure)}


def _histogram(axes: Axes, gap: Gaps) -> None:
    """Wrong choices stand on right ones; hatched, so that colour is not all that tells them apart."""
    bins = list(zip(gap.edges, gap.edges[1:], gap.right, gap.wrong, strict=False))
    for low, high, right, wrong in bins:
        look = {"width": high - low, "align": "edge", "linewidth": 0.6}
        axes.bar(low, right, color=_RIGHT, edgecolor="#ffffff", **look)
        if wrong:  # an empty bar would still draw its edge
            axes.bar(low, wrong, bottom=right, color=PALETTE[1], edgecolor=INK, hatch="////", **look)
    axes.set_xlim(gap.edges[0], gap.edges[-1])
    axes.set_xlabel("best − second best")
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(visible=False, axis="x")
