"""Examples in a run's report: each kind shows truth against prediction, on one page, in the same bytes, safely."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rc_context
from PIL import Image

from avcl.report import render
from avcl.report.frames import outline
from avcl.report.timeline import WIDTH, clip, stretches
from avcl_core.errors import IntegrityError
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.examples import Answer, MaskedFrames, Timeline, TimelineRow, write_examples
from avcl_core.running.folder import RunFolder
from avcl_core.stream import Experience, concatenation

TIMELINE = Timeline(
    "clip1#7",
    "clip1: Bell",
    (
        TimelineRow("Bell", (0, 1, 1, 1, 0, 0, 0, 0, 0, 0), (0, 0, 1, 1, 1, 0, 0, 0, 0, 0)),
        TimelineRow("Horn", (0,) * 10, (0,) * 10),
    ),
)
ANSWERS = (
    Answer("q1", "video 12", "How many <b>flutes</b>?", "two", "two", "Audio Counting"),
    Answer("q2", "video 34", "Where is it?", "left & up", "<i>right</i>", "Visual Location"),
)


def masked(side: int = 224, title: str = "dog & <b>man</b>") -> MaskedFrames:
    """Three grey frames: prediction left half, truth top half; the truth of the last is unknown."""
    frames = np.full((3, side, side, 3), 128, dtype=np.uint8)
    truth, predicted = np.zeros((2, 3, side, side), dtype=bool)
    truth[:, : side // 2] = True
    predicted[:, :, : side // 2] = True
    return MaskedFrames("m1", title, frames, truth, predicted, np.array([True, True, False]))


def make_run(root: Path, tests: tuple[str, ...] = ("ave", "avs", "avqa"), rows: int | None = None, **examples) -> Path:
    """Write a run folder through the engine's own writer; ``examples``: of test sets, by name."""
    parts = [Experience(i, name, name, ("a",), ("b",), ("c",)) for i, name in enumerate(tests)]
    stream = concatenation("s", parts)
    root.mkdir(parents=True)
    (root / "run.json").write_text(json.dumps({"method": "er", "model": "avmoe", "seed": 0}))
    (root / "stream.json").write_text(json.dumps(stream.to_json()))
    (root / "config.yaml").write_text("seed: 0\n")
    folder = RunFolder(root)
    for end in range(rows or len(tests)):
        for name in tests[: end + 1]:
            metrics = {"accuracy": 40.0 + end}
            record = {"row": tests[end], "test": name, "task": name, "primary": "accuracy", "metrics": metrics}
            shown = examples.get(name, ())
            folder.result(record | {"samples": 1234}, Evaluation(metrics, {}, {}, shown), dict)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with examples of each kind."""
    return make_run(tmp_path_factory.mktemp("e") / "run", ave=[TIMELINE], avs=[masked()], avqa=ANSWERS)


def section_of(page: Path) -> str:
    """Return the source of the section of examples."""
    source = page.read_text()
    return source[source.index("<h2>Examples</h2>") : source.index("<h2>All metrics</h2>")]


def text_of(source: str) -> str:
    """Return the visible text, runs of white space as one blank."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def pictures_of(source: str) -> list[np.ndarray]:
    """Return the embedded pictures, decoded."""
    found = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', source)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True)))) for data in found]


def points(path: str) -> np.ndarray:
    """Return the points of a path ``[n, 2]`` (x, y)."""
    return np.array([[float(v) for v in point.split()] for point in re.split("[ML]", path) if point])


def test_each_test_set_has_its_part_and_only_the_first_is_open(run):
    source = section_of(render([run]))
    parts = re.findall(r"<details( open)?><summary>(.*?)</summary>", source)
    assert [opened for opened, _ in parts] == [" open", "", ""]
    assert [text_of(summary) for _, summary in parts] == [
        "ave 1 of 1,234 samples, after avqa",
        "avs 1 of 1,234 samples, after avqa",
        "avqa 2 of 1,234 samples, after avqa",
    ]
    page = (run / "report.html").read_text()
    assert page.index("<h2>Result matrix</h2>") < page.index("<h2>Examples</h2>") < page.index("<h2>All metrics</h2>")


def test_a_time_line_has_a_bar_for_every_stretch():
    assert stretches((1, 1, 0, 1)) == [(0, 2), (3, 4)]
    assert stretches((0, 0)) == []
    drawn = clip(TIMELINE)
    second = WIDTH / 10
    bell, horn = drawn.lines
    assert {(bar.kind, bar.x, bar.width) for bar in bell.bars} == {
        ("truth", second, 3 * second),
        ("hit", 2 * second, 2 * second),
        ("extra", 4 * second, second),
        ("missed", second, second),
    }
    assert horn.bars == ()
    assert bell.words == "truth 1–4 s; predicted 2–5 s"
    assert horn.words == "truth never; predicted never"
    assert drawn.ticks == tuple((n * second, n) for n in range(0, 11, 2))


@pytest.mark.parametrize(("seconds", "ticks"), [(1, [0, 1]), (5, [0, 1, 2, 3, 4, 5]), (60, [0, 20, 40, 60])])
def test_the_axis_has_few_ticks_at_round_seconds(seconds, ticks):
    drawn = clip(Timeline("k", "t", (TimelineRow("a", (1,) * seconds, (1,) * seconds),)))
    assert [second for _, second in drawn.ticks] == ticks
    assert drawn.lines[0].bars[0].width == WIDTH


def test_time_lines_differ_without_colour_and_name_their_seconds(run):
    page = render([run])
    source = section_of(page)
    row = re.search(r'aria-label="truth 1–4 s; predicted 2–5 s">.*?</svg>', source).group()
    drawn = {kind: float(y) for kind, y in re.findall(r'<rect class="(\w+)" x="[\d.]+" y="([\d.]+)"', row)}
    assert drawn.keys() == {"truth", "hit", "extra", "missed"}
    assert drawn["truth"] < drawn["hit"] == drawn["extra"] == drawn["missed"]
    style = page.read_text().split("</style>")[0]
    rules = dict(re.findall(r"^\.(extra|missed|hit) \{ (.*) \}", style, flags=re.M))
    assert "url(#avcl-wrong)" in rules["extra"]
    assert 'id="avcl-wrong"' in source.split("<details")[0]  # a closed part would take the pattern with it
    assert "dasharray" in rules["missed"]
    assert "dasharray" not in rules["hit"]
    text = text_of(source)
    assert "clip1: Bell" in text
    assert "0 2 4 6 8 10 s" in text
    assert "true, not predicted" in text


def test_a_clip_without_rows_says_so(tmp_path):
    source = section_of(render([make_run(tmp_path / "r", ave=[replace(TIMELINE, rows=())])]))
    assert "No label is true or predicted." in text_of(source)


def test_frames_show_the_predicted_mask_and_the_outline_of_the_true_one(run):
    source = section_of(render([run]))
    strip = source[source.index('<figure class="strip">') :]
    strip = strip[: strip.index("</figure>")]
    pictures = pictures_of(strip)
    assert [picture.shape for picture in pictures] == [(100, 100, 3)] * 3
    for picture in pictures:
        inside, outside = picture[5:95, 5:45].reshape(-1, 3), picture[5:95, 55:95].reshape(-1, 3)
        assert inside.mean() > outside.mean() + 60  # much lighter, not only pink
        assert np.ptp(outside.mean(0)) < 4
        assert np.ptp(inside.mean(0)) > 20
    items = strip.split("<li>")[1:]
    assert ["outline" in item for item in items] == [True, True, False]
    around = points(re.search(r'class="outline" d="([^"]+)"', strip).group(1))
    assert [around.min(0).tolist(), around.max(0).tolist()] == [[0, 0], [100, 50]]
    assert ["unknown" in item.split("</title>")[1] for item in items] == [False, False, True]
    assert [text_of(item.split("</svg>")[1]) for item in items] == ["1", "2", "3: unlabelled"]
    assert "frame 1: predicted mask 50% of the frame, true mask 50%" in strip
    assert "frame 3: predicted mask 50% of the frame, truth unknown" in strip


def test_the_outline_lies_on_the_edge_of_the_mask():
    mask = np.zeros((40, 60))
    mask[10:20, 30:50] = 1
    found = points(outline(mask))
    assert found.min(0).tolist() == [30, 10]
    assert found.max(0).tolist() == [50, 20]
    assert points(outline(np.ones((8, 12)))).max(0).tolist() == [12, 8]
    assert points(outline(np.ones((8, 12)))).min(0).tolist() == [0, 0]
    two = mask.copy()
    two[30:35, 5:9] = 1
    assert outline(two).count("M") == 2
    assert outline(mask * 0.2).count("M") == 1
    assert outline(np.zeros((4, 4))) == ""


def test_frames_keep_their_shape_and_are_never_enlarged(tmp_path):
    frames = np.zeros((1, 40, 400, 3), dtype=np.uint8)
    mask = np.zeros((1, 40, 400), dtype=bool)
    wide = MaskedFrames("w", "wide", frames, mask, mask, np.array([True]))
    source = section_of(render([make_run(tmp_path / "r", avs=[wide, masked(32)])]))
    assert [picture.shape[:2] for picture in pictures_of(source)] == [(10, 100), *[(32, 32)] * 3]


def test_answers_are_a_table_with_a_sign_for_right_and_wrong(run):
    source = section_of(render([run]))
    table = source[source.index("<table>") :]
    assert re.findall(r"<th>(.*?)</th>", table) == ["Clip", "Question", "True answer", "Predicted", "Type"]
    rows = [[text_of(cell) for cell in re.findall(r"<td.*?</td>", row)] for row in table.split("<tr>")[2:]]
    assert rows == [
        ["video 12", "How many <b>flutes</b>?", "two", "✓ two", "Audio Counting"],
        ["video 34", "Where is it?", "left & up", "✗ <i>right</i>", "Visual Location"],
    ]
    assert re.findall(r'aria-label="(right|wrong)"', table) == ["right", "wrong"]


def test_kinds_are_drawn_by_what_they_are_whatever_their_test_set(tmp_path):
    source = section_of(render([make_run(tmp_path / "r", ("x y",), **{"x y": [*ANSWERS, masked(), TIMELINE]})]))
    assert source.count("<details") == 1
    assert all(part in source for part in ('class="clip"', 'class="strip"', "<table>"))
    assert "4 of 1,234 samples" in text_of(source)


def test_nothing_from_an_example_becomes_markup(tmp_path):
    bad = "<script>alert(1)</script><img src=x>\"'&"
    line = Timeline("k", bad, (TimelineRow(bad, (1,), (0,)),))
    answer = Answer("k", bad, bad, bad, bad + ".", bad)
    page = render([make_run(tmp_path / "r", ("ave",), ave=[line, masked(32, bad), answer])])
    source = page.read_text()
    assert not re.search(r"<(?:script|link|img|iframe|object|b>man|i>)", source)
    assert text_of(section_of(page)).count(bad) == 8
    drawings = re.findall(r"<svg.*?</svg>", source, flags=re.S)
    assert len(drawings) > 5
    for svg in drawings:
        xml.etree.ElementTree.fromstring(svg)


def test_a_page_with_examples_asks_for_nothing(run):
    source = render([run]).read_text()
    assert set(re.findall(r"https?://[^\"'<> )]+", source)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert set(re.findall(r"url\(([^)]*)\)", source)) == set(re.findall(r"url\((#[^)]*)\)", source))
    assert all(address.startswith(("#", "data:image/")) for address in re.findall(r'(?:href|src)="([^"]*)"', source))


def test_bytes_depend_on_the_examples_alone(run, tmp_path):
    first = render([run]).read_bytes()
    moved = tmp_path / "another place"
    shutil.copytree(run, moved)
    with rc_context({"contour.algorithm": "serial"}):
        assert render([moved]).read_bytes() == first
    write_examples(moved / "results" / "examples" / "avs.jsonl", [replace(masked(), predicted=masked().truth)])
    assert render([moved]).read_bytes() != first


def test_runs_and_test_sets_without_examples_have_no_section(run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    shutil.rmtree(old / "results" / "examples")
    page = render([old]).read_text()
    assert "Examples" not in page
    assert ".clips" not in page
    part = section_of(render([make_run(tmp_path / "r", avs=[masked()])]))
    assert re.findall(r"<summary>(\w+)", part) == ["avs"]
    assert "<details open>" in part
    assert "truth (upper bar)" not in part


def test_the_row_is_the_last_that_was_tested(tmp_path):
    part = section_of(render([make_run(tmp_path / "r", rows=2, ave=[TIMELINE])]))
    assert "after avs" in text_of(part)


def damage_line(text: str) -> str:
    return text[: len(text) // 2]


def damage_object(text: str) -> str:
    return "3\n"


def damage_archive(text: str) -> str:
    at = text.index('"npz": "') + 120
    return f"{text[:at]}{'B' if text[at] == 'A' else 'A'}{text[at + 1 :]}"


def damage_bytes(text: str) -> bytes:
    return text.encode()[:40] + b"\xff" + text.encode()[40:]


@pytest.mark.parametrize("damage", [damage_line, damage_object, damage_archive, damage_bytes])
def test_a_damaged_file_is_named(tmp_path, damage):
    folder = make_run(tmp_path / "r", avs=[masked()])
    file = folder / "results" / "examples" / "avs.jsonl"
    found = damage(file.read_text())
    file.write_bytes(found if isinstance(found, bytes) else found.encode())
    with pytest.raises(IntegrityError, match=rf"{re.escape(str(file))}: .*evaluate the run again"):
        render([folder])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Timeline("k", "t", (TimelineRow("a", (1, 0), (1,)),)), r"rows: found \[1, 2\] seconds, expected one length"),
        (Timeline("k", "t", (TimelineRow("a", (), ()),)), r"rows: found \[0\] seconds"),
        (Timeline("k", "t", (TimelineRow("a", (1, 2), (1, 0)),)), "row 'a': found 2, expected 0 or 1"),
        (Timeline("k", None, ()), "title: found None, expected text"),  # type: ignore[arg-type]
        (replace(ANSWERS[0], predicted=3), "predicted: found 3, expected text"),  # type: ignore[arg-type]
        (
            replace(masked(), truth=masked().truth[:2]),
            r"truth: found bool \(2, 224, 224\), expected bool \(3, 224, 224\)",
        ),
        (replace(masked(), frames=masked().frames / 255), "frames: found float64 .*expected uint8"),
        (replace(masked(), frames=masked().frames[..., 0]), r"frames: found \(3, 224, 224\), expected \[frames"),
        (replace(masked(), known=[True] * 3), "known: found list, expected an array"),  # type: ignore[arg-type]
    ],
)
def test_an_example_that_cannot_be_drawn_is_named(tmp_path, example, message):
    folder = make_run(tmp_path / "r", ave=[TIMELINE, example])
    file = folder / "results" / "examples" / "ave.jsonl"
    with pytest.raises(IntegrityError, match=rf"{re.escape(str(file))}: example 2: field {message}"):
        render([folder])
