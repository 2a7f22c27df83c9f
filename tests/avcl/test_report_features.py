"""Feature maps in a run's report: a panel per modality, the ten largest groups in colour, nothing without files."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from avcl.report.features import NAMED, draw, drawn, largest, tsne
from avcl.report.page import render_run
from avcl_core.errors import IntegrityError
from avcl_core.evaluation.saved_features import SavedFeatures, write_features
from avcl_core.stream import Experience, concatenation


def saved(groups: list[str], width: int = 5) -> SavedFeatures:
    """Rows of two modalities; the visual ones of a group lie together."""
    rng, names = np.random.default_rng(0), sorted(set(groups))
    centres = rng.normal(size=(len(names), width)) * 20
    visual = np.stack([centres[names.index(group)] for group in groups]) + rng.normal(size=(len(groups), width))
    audio = rng.normal(size=(len(groups), 3))
    keys = tuple(f"k{i}" for i in range(len(groups)))
    return SavedFeatures(keys, tuple(groups), {"audio": audio.astype("f4"), "visual": visual.astype("f4")})


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that was not evaluated in its course."""
    stream = concatenation("s", [Experience(0, "ave", "ave", ("a",), ("b",), ("c",))])
    (tmp_path / "run.json").write_text(json.dumps({"method": "finetune", "model": "m", "seed": 0}))
    (tmp_path / "stream.json").write_text(json.dumps(stream.to_json()))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    return tmp_path


def texts(svg: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_the_section_is_there_where_features_are(run):
    assert "<h2>Features</h2>" not in render_run(run).read_text()
    write_features(run / "evaluations" / "latest", "ave", saved(["dog", "<b>man</b>"] * 6))
    page = render_run(run).read_bytes()
    source = page.decode()
    section = source[source.index("<h2>Features</h2>") :].split("<h2>")[1]
    assert "evaluation latest, 12 samples" in section
    assert section.count("<svg") == 1
    assert {"visual", "audio", "dog", "<b>man</b>"} <= set(texts(section))
    assert (run / "results" / "figures" / "features-latest-ave.svg").is_file()
    assert render_run(run).read_bytes() == page


def test_a_damaged_file_is_named(run):
    path = write_features(run / "evaluations" / "latest", "ave", saved(["dog"] * 4))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(IntegrityError, match=r"features/ave\.npz"):
        render_run(run)


def test_groups_that_lie_apart_are_apart_on_the_map():
    groups = ["a"] * 20 + ["b"] * 20
    places = tsne(saved(groups).means["visual"])
    assert places.shape == (40, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.diag(np.full(40, np.inf))
    assert all((row < 20) == (nearest < 20) for row, nearest in enumerate(distances.argmin(1)))


def test_ten_groups_have_names_and_the_rest_is_grey():
    groups = [f"g{i:02d}" for i in range(13) for _ in range(20 - i)] + [""]
    assert largest(groups) == tuple(f"g{i:02d}" for i in range(NAMED))
    said = texts(draw(saved([f"g{i:02d}" for i in range(13) for _ in range(14 - i)])))
    assert [text for text in said if text.startswith("g")] == [f"g{i:02d}" for i in range(NAMED)]
    assert "3 other groups" in said
    assert "no group" in texts(draw(saved([""] * 5)))


def test_which_samples_are_drawn_depends_on_keys_alone():
    whole = saved(["a", "b"] * 20)
    part = drawn(whole, 10)
    rows = [whole.keys.index(key) for key in part.keys]
    assert rows == sorted(rows)
    assert len(rows) == 10
    assert rows != list(range(10))
    assert np.array_equal(part.means["audio"], whole.means["audio"][rows])
    assert part.groups == tuple(whole.groups[row] for row in rows)
    turned = SavedFeatures(whole.keys[::-1], whole.groups[::-1], {n: v[::-1] for n, v in whole.means.items()})
    assert set(drawn(turned, 10).keys) == set(part.keys)
    assert drawn(whole).keys == whole.keys


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ones((3, 4)), "3 samples: too few for a map"),
        (np.ones((6, 4)) + 1e-7 * np.eye(6, 4), "all samples have the same features"),
        (
            np.where(np.arange(6)[:, None] == 2, np.nan, np.random.default_rng(0).normal(size=(6, 4))),
            "left out, features not finite: 1",
        ),
    ],
)
def test_what_has_no_map_says_why(values, said):
    found = SavedFeatures(tuple("abcdef"[: len(values)]), ("g",) * len(values), {"audio": values.astype("f4")})
    assert any(text.startswith(said) for text in texts(draw(found)))
