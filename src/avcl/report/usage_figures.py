"""The figures of expert usage: weights by expert and depth, and evenness, agreement and size of residuals over depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from avcl.report.figures import readable_on, short
from avcl.report.style import MUTED, RULE, figure_style, look, panels, to_svg
from avcl.report.usage import WEIGHT, UsageView, UsedIn, colour, places, places_of, told_at

_WRITTEN = 12
"""Columns up to which weights stand in their cells as numbers."""


def usage_figures(view: UsageView) -> dict[str, str]:
    """Return name → SVG document."""
    with figure_style():
        return {"usage": to_svg(_map(view)), "usage_depth": to_svg(_depth(view))}


def _map(view: UsageView) -> Figure:
    """One panel per test set (down) and tower (across): rows are experts, columns sites in depth."""
    down, across = len(view.tests), len(view.towers)
    tall = 0.26 * len(view.experts)
    figure = Figure(figsize=(11.4, down * (tall + 0.62) + 1.3))
    grid = figure.subplots(down, across, squeeze=False)
    for row, used in enumerate(view.tests):
        for column, tower in enumerate(view.towers):
            axes = grid[row, column]
            _panel(axes, used, tower, view.experts if column == 0 else ())
            title = tower if down == 1 else f"{short(used.test, 24)}: {tower}"
            axes.set_title(title, pad=16 if row == 0 else 5)
            _depth_ticks(axes, places(used.usage, tower), named=row == down - 1, grouped=row == 0)
    scale = figure.colorbar(
        ScalarMappable(cmap=WEIGHT), ax=grid.ravel().tolist(), location="bottom", shrink=0.36, aspect=38, pad=0.03
    )
    scale.set_ticks([0, 0.5, 1], labels=["never", "even share 1/E", "always"])
    scale.outline.set_visible(False)  # type: ignore[operator]
    scale.set_label("mean weight of the expert")
    return figure


def _panel(axes: Axes, used: UsedIn, tower: str, names: Sequence[str]) -> None:
    found = places(used.usage, tower)
    most = 0
    for x, place in enumerate(found):
        told = told_at(used.usage, tower, place)
        gates = told.gates if told is not None else []
        most = max(most, len(gates))
        for y, weight in enumerate(gates):
            face = colour(weight, len(gates))
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor="#ffffff", lw=0.6))
            if len(found) <= _WRITTEN:
                text = f"{weight:.2f}"
                axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=readable_on(face), fontsize=8)
    axes.add_patch(Rectangle((0, 0), len(found), most, fill=False, edgecolor="#b9c2cb", lw=0.8))
    axes.set_xlim(0, max(1, len(found)))
    axes.set_ylim(max(1, most), 0)
    axes.set_yticks([y + 0.5 for y in range(most)], [short(n, 14) for n in names[:most]] if names else [""] * most)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _depth_ticks(
    axes: Axes, found: Sequence[str], named: bool, grouped: bool, offset: float = 0.5, rule: str = MUTED
) -> None:
    """Name columns by their last words, and groups of columns by their first one, above."""
    ends = [place.partition(" ")[2] or place for place in found]
    axes.set_xticks(
        [x + offset for x in range(len(found))], ends if named else [""] * len(ends), rotation=90, fontsize=8
    )
    x = 0
    for stage, members in groupby(found, lambda place: place.partition(" ")[0]):
        width = len(list(members))
        if x:
            axes.axvline(x - 0.5 + offset, color=rule, linewidth=0.8)
        if grouped and any(" " in place for place in found):
            axes.text(
                x + width / 2 - 0.5 + offset, 1.02, stage, transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=8, color=MUTED,
            )  # fmt: skip
        x += width


def _depth(view: UsageView) -> Figure:
    """Lines over depth, one per test set: evenness of each tower, agreement of the towers, size of residuals."""
    drawn: list[tuple[str, Callable[[Axes], None]]] = []
    for tower in view.towers:
        drawn.append((f"{tower}: entropy / log E", lambda axes, t=tower: _numbers(axes, view, t, "evenness", 1.0)))
    if any(used.usage.agreement for used in view.tests):
        drawn.append(("same expert first in both", lambda axes: _agreements(axes, view)))
    for tower in view.towers:
        if any(places_of(used.usage, tower, "residual") for used in view.tests):
            drawn.append(
                (f"{tower}: residual / tokens", lambda axes, t=tower: _numbers(axes, view, t, "residual", None))
            )
    figure, all_axes = panels(len(drawn), 2.7)
    figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr]
    for axes, (title, draw) in zip(all_axes, drawn, strict=True):
        draw(axes)
        axes.set_title(title, pad=16)
    if len(view.tests) > 1:
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=min(4, len(labels)))
    return figure


def _numbers(axes: Axes, view: UsageView, tower: str, name: str, top: float | None) -> None:
    depth = list(dict.fromkeys(place for used in view.tests for place in places_of(used.usage, tower, name)))
    for index, used in enumerate(view.tests):
        values = [told.number(name) if (told := told_at(used.usage, tower, place)) else None for place in depth]
        axes.plot(
            range(len(depth)), [np.nan if v is None else v for v in values], label=short(used.test, 24), ms=4,
            **_line(index),
        )  # fmt: skip
    _finish(axes, depth, top)


def _agreements(axes: Axes, view: UsageView) -> None:
    depth = list(dict.fromkeys(entry.place for used in view.tests for entry in used.usage.agreement))
    for index, used in enumerate(view.tests):
        found = {entry.place: entry for entry in used.usage.agreement}
        style = _line(index)
        axes.plot([depth.index(p) for p in found], [e.agreement for e in found.values()], ms=4, **style)
        chance = [e.chance for e in found.values()]
        axes.plot([depth.index(p) for p in found], chance, color=style["color"], linestyle=":", linewidth=1.1)
    _finish(axes, depth, 1.0)


def _line(index: int) -> dict:
    return {**look(index), "linewidth": 1.3}


def _finish(axes: Axes, depth: Sequence[str], top: float | None) -> None:
    axes.set_xlim(-0.5, max(1, len(depth)) - 0.5)
    axes.set_ylim(0, top if top is None else top * 1.04)
    _depth_ticks(axes, depth, named=True, grouped=True, offset=0.0, rule=RULE)
    axes.grid(visible=False, axis="x")
