"""The figures of a comparison: final scores with every seed, and methods side by side over the experiences."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from avcl.report.comparison import Group, StreamComparison
from avcl.report.figures import short
from avcl.report.style import INK, MUTED, figure_style, look, panels, to_svg
from avcl_core.evaluation.matrix import START


def comparison_figures(stream: StreamComparison) -> dict[str, str]:
    """Return name → SVG document of the figures of one stream."""
    with figure_style():
        made = {"scores": to_svg(_scores(stream))}
        if any(not group.reference for group in stream.groups):
            made["trajectories"] = to_svg(_trajectories(stream))
        return made


def _scores(stream: StreamComparison) -> Figure:
    """One panel per test set: mean and standard deviation per method, a small dot per seed, the best control dotted."""
    groups, tests = stream.groups, stream.tests
    figure, all_axes = panels(len(tests), 1.15 + 0.36 * len(groups), most=2, width=11.4 if len(tests) > 1 else 7.0)
    for column, (axes, test) in enumerate(zip(all_axes, tests, strict=True)):
        for y, group in enumerate(groups):
            statistic, style = group.final[column].statistic, look(y)
            if statistic.mean is None:
                continue
            axes.plot(statistic.values, [y + 0.24] * len(statistic.values), ".", color=style["color"], alpha=0.75, ms=5)
            axes.errorbar(
                statistic.mean,
                y,
                xerr=statistic.std or 0.0,
                color=style["color"],
                marker=style["marker"],
                capsize=3,
                mfc="#ffffff" if group.reference else style["color"],
            )
        control = stream.best_control(column)
        if control is not None:
            axes.axvline(control, color=MUTED, linestyle=":", linewidth=1.3)
        if column % 2 == 0:
            axes.set_yticks(range(len(groups)), [short(group.title, 30) for group in groups])
        else:
            axes.set_yticks(range(len(groups)), [""] * len(groups))
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.set_title(short(test.name, 28))
        axes.set_xlabel(test.primary)
        axes.margins(x=0.08)
    return figure


def _trajectories(stream: StreamComparison) -> Figure:
    """One panel per test set, from its own experience on: mean over seeds per method, band of one standard deviation.

    The references have a single result, drawn at the last experience.
    """
    tests, experiences = stream.tests, stream.experiences
    figure, all_axes = panels(len(tests), 2.9, most=3 if len(tests) > 4 else 2, width=11.4 if len(tests) > 1 else 7.0)
    for column, (axes, test) in enumerate(zip(all_axes, tests, strict=True)):
        own = experiences.index(test.experience)
        for index, group in enumerate(stream.groups):
            style = look(index)
            if group.reference:
                statistic = group.final[column].statistic
                if statistic.mean is not None:
                    x = len(experiences) - 0.78 + 0.12 * (index % 3)
                    axes.errorbar(
                        x,
                        statistic.mean,
                        yerr=statistic.std or 0.0,
                        color=style["color"],
                        marker=style["marker"],
                        mfc="#ffffff",
                        capsize=3,
                        linestyle="none",
                        label=short(group.title, 30),
                    )
                continue
            points = [
                (x, values) for x in range(own, len(experiences)) if (values := _after(group, column, experiences[x]))
            ]
            if not points:
                continue
            xs = [x for x, _ in points]
            mean = np.array([np.mean(values) for _, values in points])
            spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for _, values in points])
            axes.plot(xs, mean, label=short(group.title, 30), **style)
            axes.fill_between(xs, mean - spread, mean + spread, color=style["color"], alpha=0.13, linewidth=0)
        control = stream.best_control(column)
        if control is not None:
            axes.axhline(control, color=MUTED, linestyle=":", linewidth=1.3)
        crowded = len(experiences) > 4
        axes.set_xticks(
            range(len(experiences)),
            [short(name, 14) for name in experiences],
            rotation=30 if crowded else 0,
            ha="right" if crowded else "center",
        )
        axes.set_xlim(-0.3, len(experiences) - 0.35)
        axes.set_title(f"{short(test.name, 20)} · {short(test.primary, 20)}", color=INK)
        axes.margins(y=0.12)
    handles, labels = {}, []
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = [label for label in (short(group.title, 30) for group in stream.groups) if label in handles]
    if labels:
        figure.legend([handles[name] for name in labels], labels, loc="outside lower center", ncols=min(4, len(labels)))
    return figure


def _after(group: Group, column: int, row: str) -> list[float]:
    values = [run.tests[column].values.get(row, math.nan) for run in group.runs if row != START]
    return [value for value in values if math.isfinite(value)]
