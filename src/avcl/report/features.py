"""How samples lie in the towers' feature spaces, for the page of a run: t-SNE maps of what ``features=true`` saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from avcl.report.figures import short
from avcl.report.style import MARKERS, MUTED, PALETTE, figure_style, panels, to_svg
from avcl_core.evaluation.saved_features import SavedFeatures, features_file, read_features
from avcl_core.evaluation.summary import Summary
from avcl_core.seeding import ordered

MOST, NAMED = 1000, 10
"""Samples of a map, and groups that have a colour of their own."""
_LEAST = 4
"""Samples below which a perplexity of 1 has too few neighbours."""
_GREY = "#b9c2cb"


@dataclass(frozen=True)
class FeatureMap:
    """One test set of one evaluation.

    Attributes:
        test: its name; ``evaluation``: the folder below ``evaluations``.
        samples: in the file; ``drawn``: of these on the map.
        name: of the figure; ``figure``: SVG document, one panel per modality.
    """

    test: str
    evaluation: str
    samples: int
    drawn: int
    name: str
    figure: str


def run_features(folder: Path, summary: Summary) -> tuple[FeatureMap, ...]:
    """Return a map of every file of features that a run's evaluations wrote, in stream order of the test sets.

    Raises:
        IntegrityError: a file is damaged.
    """
    found = []
    for test in summary.tests:
        for evaluation in sorted(path for path in (folder / "evaluations").glob("*") if path.is_dir()):
            path = features_file(evaluation, test.name)
            if path.is_file():
                saved = read_features(path)
                shown = drawn(saved)
                name = f"features-{evaluation.name}-{path.stem}"
                found.append(
                    FeatureMap(test.name, evaluation.name, len(saved.keys), len(shown.keys), name, draw(shown))
                )
    return tuple(found)


def drawn(saved: SavedFeatures, most: int = MOST) -> SavedFeatures:
    """Return at most ``most`` samples, in their order; which ones depends on each key alone."""
    chosen = set(ordered(saved.keys, "features")[:most])
    rows = [row for row, key in enumerate(saved.keys) if key in chosen]
    return SavedFeatures(
        tuple(saved.keys[row] for row in rows),
        tuple(saved.groups[row] for row in rows),
        {name: value[rows] for name, value in saved.means.items()},
    )


def tsne(values: np.ndarray) -> np.ndarray:
    """Return a map ``[n, 2]`` of at least four rows ``[n, C]`` (van der Maaten & Hinton 2008), perplexity 30 or a third of n − 1."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    init = "pca" if values.shape[1] > 1 else "random"
    return TSNE(2, perplexity=perplexity, init=init, random_state=0).fit_transform(values.astype(np.float64))


def draw(saved: SavedFeatures) -> str:
    """Return the figure of a test set: one panel per modality, the largest groups in colour, the others grey."""
    names = sorted(saved.means, key=lambda name: (name != "visual", name))
    top = largest(saved.groups)
    with figure_style():
        figure, all_axes = panels(len(names), 4.9, width=min(11.4, 0.4 + 5.5 * len(names)))
        for axes, name in zip(all_axes, names, strict=True):
            _panel(axes, saved.means[name], saved.groups, top)
            axes.set_title(name)
        handles = [Line2D([], [], label=short(group, 24), **_look(index)) for index, group in enumerate(top)]
        others = {group for group in saved.groups if group not in top}
        if others:
            more = len(others - {""})
            label = f"{more} other groups" if more > 1 else "another group" if more else "no group"
            handles.append(Line2D([], [], label=label, **_look(None)))
        figure.legend(handles=handles, loc="outside lower left", ncols=min(6, max(1, len(handles))))
        return to_svg(figure)


def largest(groups: Sequence[str]) -> tuple[str, ...]:
    """Return the groups with most samples, at most ten; by name where they have equally many."""
    counts = Counter(group for group in groups if group)
    return tuple(sorted(counts, key=lambda group: (-counts[group], group))[:NAMED])


def _panel(axes: Axes, values: np.ndarray, groups: Sequence[str], top: Sequence[str]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    rows = np.flatnonzero(np.isfinite(values).all(1))
    reason = _unmapped(values[rows])
    if reason:
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=MUTED)
        return
    if len(rows) < len(values):
        axes.set_xlabel(f"left out, features not finite: {len(values) - len(rows)}")
    places = tsne(values[rows])
    named = np.array(groups)[rows]
    for index, group in [(None, None), *enumerate(top)]:  # grey ones lie below
        mine = ~np.isin(named, list(top)) if group is None else named == group
        if mine.any():
            axes.plot(places[mine, 0], places[mine, 1], **_look(index))
    axes.set_aspect("equal", adjustable="datalim")


def _unmapped(values: np.ndarray) -> str:
    """Why these rows have no map; empty if they have one."""
    if len(values) < _LEAST:
        return f"{len(values)} samples: too few for a map"
    middle = values.mean(0, dtype=np.float64)
    # Rows that differ by rounding only (a modality that was hidden) would be blown up to what looks like structure.
    if np.linalg.norm(values - middle, axis=1).max() <= 1e-5 * np.linalg.norm(middle):
        return "all samples have the same features"
    return ""


def _look(index: int | None) -> dict:
    """Colour and marker of group number ``index``, different ones for ten groups; small and grey for the rest."""
    if index is None:
        return {"linestyle": "", "color": _GREY, "marker": ".", "markersize": 4, "markeredgewidth": 0}
    marker = MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]
    return {
        "linestyle": "", "color": PALETTE[index % len(PALETTE)], "marker": marker, "markersize": 4, "markeredgewidth": 0,
    }  # fmt: skip
