"""The figures of one run: result matrix, scores over experiences, training, and parameters by owner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from avcl.report.style import INK, MUTED, RULE, figure_style, look, panels, to_svg
from avcl_core.evaluation.matrix import START
from avcl_core.evaluation.record import Epoch, RunRecord, Step
from avcl_core.evaluation.summary import Summary, TestSummary
from avcl_core.evaluation.table import DASH, format_score

BLUES = LinearSegmentedColormap.from_list("score", ["#f3f7fb", "#9dc3e2", "#3d83bd", "#0b3c6b"])
_MOST_POINTS = 400
_INK_LUMINANCE = 0.012


def run_figures(record: RunRecord, summary: Summary) -> dict[str, str]:
    """Return name → SVG document of every figure that the run has data for."""
    with figure_style():
        made = {
            "matrix": _matrix(summary) if summary.rows else None,
            "curves": _curves(summary) if summary.rows else None,
            "loss": _loss(record.steps) if record.steps else None,
            "validation": _validation(record.epochs, summary) if any(e.validation for e in record.epochs) else None,
            "parameters": _parameters(summary) if summary.parameters else None,
        }
        return {name: to_svg(figure) for name, figure in made.items() if figure is not None}


def control_of(test: TestSummary) -> tuple[str, float] | None:
    """Return the best trivial predictor of a test set (name, score): what a score has to beat."""
    known = [(value, name) for name, value in test.controls.items() if math.isfinite(value)]
    return None if not known else (max(known)[1], max(known)[0])


def above_control(value: float, test: TestSummary) -> float | None:
    """Return where ``value`` lies between the best trivial predictor (0) and the ideal (1), clipped; None if undefined."""
    control = control_of(test)
    low = 0.0 if control is None else control[1]
    if not math.isfinite(value) or test.ideal <= low:
        return None
    return min(1.0, max(0.0, (value - low) / (test.ideal - low)))


def short(text: str, length: int = 18) -> str:
    """Return ``text``, shortened in the middle where an axis has no room."""
    return text if len(text) <= length else f"{text[: length - 7]}…{text[-6:]}"


def _matrix(summary: Summary) -> Figure:
    """Cells R[t,i]; colour per column from the best trivial predictor to the ideal, because metrics differ."""
    tests, rows = summary.tests, summary.rows
    width = max(4.5, min(11.4, 2.4 + 1.25 * len(tests)))
    figure = Figure(figsize=(width, 1.5 + 0.5 * (len(rows) + 1)))
    axes = figure.subplots()
    for x, test in enumerate(tests):
        for y, row in enumerate(rows):
            value = test.values.get(row)
            share = None if value is None else above_control(value, test)
            face = "#ffffff" if share is None else BLUES(share)
            hatch = "////" if value is None else None
            axes.add_patch(
                Rectangle((x + 0.03, y + 0.04), 0.94, 0.92, facecolor=face, edgecolor=RULE, hatch=hatch, lw=0.8)
            )
            text = DASH if value is None else format_score(value, test.ideal)
            before = row == START or summary.experiences.index(row) < summary.experiences.index(test.experience)
            colour = MUTED if value is None else readable_on(face)
            style = "italic" if before else "normal"
            weight = "bold" if row == test.experience else "normal"
            box = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.5} if value is None else None
            axes.text(
                x + 0.5, y + 0.5, text, ha="center", va="center", color=colour, style=style, weight=weight, bbox=box
            )
        control = control_of(test)
        text = DASH if control is None else f"{format_score(control[1], test.ideal)}\n{short(control[0], 14)}"
        axes.text(x + 0.5, len(rows) + 0.55, text, ha="center", va="center", color=MUTED, fontsize=9)
    axes.set_xlim(0, len(tests))
    axes.set_ylim(len(rows) + 1.05, 0)
    size = 9 if len(tests) <= 6 else 7.5
    axes.set_xticks(
        [x + 0.5 for x in range(len(tests))],
        [f"{short(t.name, 16)}\n{short(t.primary, 18)}" for t in tests],
        fontsize=size,
        rotation=0 if len(tests) <= 8 else 30,
    )
    axes.set_yticks(
        [y + 0.5 for y in range(len(rows) + 1)], [*(f"after {short(r)}" if r != START else r for r in rows), "control"]
    )
    axes.xaxis.tick_top()
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def readable_on(face: Any) -> str:
    """Return ink or white, whichever has the higher contrast ratio (WCAG 2.2) on ``face``."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(face)]
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / (_INK_LUMINANCE + 0.05) else INK


def _by_metric(tests: Sequence[TestSummary]) -> dict[str, list[TestSummary]]:
    groups: dict[str, list[TestSummary]] = {}
    for test in tests:
        groups.setdefault(test.primary, []).append(test)
    return groups


def _curves(summary: Summary) -> Figure:
    """One panel per metric: each test set over the experiences; hollow before its own experience; controls dotted."""
    groups = _by_metric(summary.tests)
    order = {test.name: index for index, test in enumerate(summary.tests)}
    figure, all_axes = panels(len(groups), 3.3, most=2, width=11.4 if len(groups) > 1 else 7.6)
    positions = {row: x for x, row in enumerate(summary.rows)}
    for axes, (metric, tests) in zip(all_axes, groups.items(), strict=True):
        for test in tests:
            style = look(order[test.name])
            rows = [row for row in summary.rows if row in test.values]
            own = summary.experiences.index(test.experience)
            late = [r for r in rows if r != START and summary.experiences.index(r) >= own]
            early = rows[: len(rows) - len(late)]
            axes.plot([positions[r] for r in late], [test.values[r] for r in late], label=short(test.name, 24), **style)
            axes.plot(
                [positions[r] for r in early],
                [test.values[r] for r in early],
                color=style["color"],
                marker=style["marker"],
                linestyle="none",
                markerfacecolor="#ffffff",
            )
            control = control_of(test)
            if control is not None:
                axes.axhline(control[1], color=style["color"], linestyle=":", linewidth=1.1)
        axes.set_title(metric)
        _row_axis(axes, summary.rows)
        axes.margins(y=0.12)
        _legend(axes)
    return figure


def _row_axis(axes: Axes, rows: Sequence[str]) -> None:
    crowded = len(rows) > 5
    axes.set_xticks(range(len(rows)), [short(row, 14) for row in rows], rotation=30 if crowded else 0)
    if crowded:
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
    axes.set_xlim(-0.4, len(rows) - 0.6)
    axes.set_xlabel("after")


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = min(4, len(handles))
        axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points where there are more than a figure can show."""
    if len(x) <= _MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _loss(steps: Sequence[Step]) -> Figure:
    """Parts of the loss over the steps of all sessions, sessions side by side."""
    figure, (axes,) = panels(1, 3.0, width=11.4)
    parts = list(dict.fromkeys(name for step in steps for name in step.loss))
    sessions = list(dict.fromkeys(step.session for step in steps))
    x = np.arange(len(steps), dtype=float)
    for index, part in enumerate(parts):
        style = look(index)
        labelled = False
        for session in sessions:
            chosen = [n for n, step in enumerate(steps) if step.session == session and part in step.loss]
            if not chosen:
                continue
            values = np.array([steps[n].loss[part] for n in chosen])
            axes.plot(
                *_thin(x[chosen], values),
                color=style["color"],
                linestyle=style["linestyle"],
                linewidth=1.3,
                label=None if labelled else short(part, 24),
            )
            labelled = True
    ticks = []
    for session in sessions:
        members = [n for n, step in enumerate(steps) if step.session == session]
        if members[0] > 0:
            axes.axvline(members[0] - 0.5, color=MUTED, linewidth=0.8)
        names = list(dict.fromkeys(steps[n].experience for n in members))
        ticks.append(
            ((members[0] + members[-1]) / 2, short(names[0] if len(names) == 1 else f"{len(names)} jointly", 16))
        )
    axes.set_xticks([at for at, _ in ticks], [name for _, name in ticks])
    axes.set_xlim(-0.5, len(steps) - 0.5)
    axes.set_title("Loss parts while learning")
    axes.set_xlabel(f"{len(steps):,} logged steps, by session")
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _legend(axes)
    return figure


def _validation(epochs: Sequence[Epoch], summary: Summary) -> Figure:
    """Validation score per epoch, one panel per metric; a ring marks the epoch that each session kept."""
    primary = {test.experience: test.primary for test in summary.tests if test.primary != DASH}
    series: dict[str, dict[str, list[tuple[int, float, int]]]] = {}
    for x, epoch in enumerate(epochs):
        for experience, metrics in epoch.validation.items():
            metric = primary.get(experience)
            metric = metric if metric in metrics else next(iter(metrics), None)
            if metric is not None:
                series.setdefault(metric, {}).setdefault(experience, []).append((x, metrics[metric], epoch.session))
    kept = {epoch.session: x for x, epoch in enumerate(epochs) if epoch.selected}
    starts = [x for x in range(1, len(epochs)) if epochs[x].session != epochs[x - 1].session]
    names = list(dict.fromkeys(name for group in series.values() for name in group))
    figure, all_axes = panels(max(1, len(series)), 3.0, most=2, width=11.4 if len(series) > 1 else 7.6)
    for axes, (metric, group) in zip(all_axes, series.items(), strict=False):
        for experience, points in group.items():
            style = look(names.index(experience))
            for position, session in enumerate(dict.fromkeys(s for _, _, s in points)):
                part = [(x, value) for x, value, s in points if s == session]
                axes.plot(
                    *zip(*part, strict=True), label=None if position else short(experience, 24), markevery=1, **style
                )
            rings = [(x, value) for x, value, _ in points if x in kept.values()]
            if rings:
                axes.plot(*zip(*rings, strict=True), "o", ms=11, mfc="none", mec=INK, mew=1.2, linestyle="none")
        for x in starts:
            axes.axvline(x - 0.5, color=MUTED, linewidth=0.8)
        axes.set_title(f"validation {metric}")
        axes.set_xlabel("epoch, sessions side by side")
        axes.set_xlim(-0.5, len(epochs) - 0.5)
        axes.set_xticks([])
        axes.margins(y=0.15)
        _legend(axes)
    return figure


def _parameters(summary: Summary) -> Figure:
    """Owned elements by owner, parameters and buffers stacked."""
    owners = list(summary.parameters)
    kinds = list(dict.fromkeys(kind for counts in summary.parameters.values() for kind in counts))
    figure = Figure(figsize=(7.6, 1.0 + 0.36 * len(owners)))
    axes = figure.subplots()
    left = np.zeros(len(owners))
    for index, kind in enumerate(kinds):
        width = np.array([summary.parameters[owner].get(kind, 0) for owner in owners], dtype=float)
        axes.barh(owners, width, left=left, color=("#3d83bd", "#E69F00", "#7A5195")[index % 3], label=kind, height=0.66)
        left += width
    for y, total in enumerate(left):
        axes.text(total, y, f"  {int(total):,}", va="center", fontsize=9, color=INK)
    axes.set_xlim(0, float(left.max() or 1.0) * 1.2)
    axes.set_yticks(range(len(owners)), [short(owner, 28) for owner in owners])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("elements")
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(_few_ticks())
    if len(kinds) > 1:
        _legend(axes)
    return figure


def _few_ticks():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, integer=True)
