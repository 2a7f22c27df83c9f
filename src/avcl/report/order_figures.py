"""The figure of a plan with orders: what each variant's scores and forgetting owe to the order, point by point."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from avcl.report.figures import short
from avcl.report.style import INK, MUTED, RULE, figure_style, look, to_svg
from avcl_core.evaluation.summary import Summary, TestSummary

BySeed = Mapping[int, Summary]


def order_figure(
    cells: Mapping[str, Mapping[str, BySeed]],
    orders: Sequence[str],
    tests: Sequence[TestSummary],
    controls: Sequence[tuple[str, float] | None],
) -> str:
    """Return an SVG: a row per test set, final scores on the left and drops on the right, a point per seed, a bar at the mean.

    Args:
        cells: variant → order → seed → summary; a variant whose order is none of ``orders`` stands for all of them.
        controls: the best trivial predictor of each test set, dotted.
    """
    with figure_style():
        figure = Figure(figsize=(11.4, 0.5 + 2.6 * len(tests)))
        axes = figure.subplots(len(tests), 2, squeeze=False, width_ratios=(3, 2))
        sequential = {name: by for name, by in cells.items() if any(order in by for order in orders)}
        for row, test in enumerate(tests):
            _panel(axes[row][0], cells, orders, test.name, lambda t: t.final.value)
            _panel(axes[row][1], sequential, orders, test.name, lambda t: t.drop.value)
            control = controls[row]
            if control is not None:
                axes[row][0].axhline(control[1], color=MUTED, linestyle=":", linewidth=1.3)
            axes[row][1].axhline(0.0, color=MUTED, linewidth=0.8)
            axes[row][0].set_title(f"{short(test.name, 24)}: final {short(test.primary, 24)}")
            axes[row][1].set_title("drop")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))))
        return to_svg(figure)


def _panel(
    axes,
    cells: Mapping[str, Mapping[str, BySeed]],
    orders: Sequence[str],
    test: str,
    pick: Callable[[TestSummary], float | None],
) -> None:
    """Orders from left to right; within an order the variants side by side; what has no order, right of them all."""
    variants = list(cells)
    free = [name for name, by in cells.items() if not any(order in by for order in orders)]
    ticks = [short(order, 16) for order in orders] + (["any order"] if free else [])
    ordered = [name for name in variants if name not in free]
    for index, variant in enumerate(variants):
        style = look(index)
        labelled = False
        for order, seeds in cells[variant].items():
            beside = free if variant in free else ordered
            step = 0.84 / len(beside)
            x = (len(orders) if variant in free else orders.index(order)) - 0.42 + step * (beside.index(variant) + 0.5)
            values = [value for one in seeds.values() if (value := _value(one, test, pick)) is not None]
            if not values:
                continue
            width = min(0.16, 0.4 * step)
            spread = np.linspace(-0.5, 0.5, len(values)) * width if len(values) > 1 else [0.0]
            axes.plot([x - width, x + width], [np.mean(values)] * 2, color=style["color"], linewidth=2.4, zorder=2)
            axes.plot(
                x + np.asarray(spread),
                values,
                linestyle="none",
                marker=style["marker"],
                ms=4.5,
                color=style["color"],
                mfc="#ffffff",
                mew=1.1,
                zorder=3,
                label=None if labelled else short(variant, 30),
            )
            labelled = True
    for x in range(1, len(ticks)):
        axes.axvline(x - 0.5, color=RULE, linewidth=0.8)
    axes.set_xticks(range(len(ticks)), ticks, color=INK)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)


def _value(summary: Summary, test: str, pick: Callable[[TestSummary], float | None]) -> float | None:
    value = next((pick(one) for one in summary.tests if one.name == test), None)
    return value if value is not None and math.isfinite(value) else None
