"""Examples of a test set survive their file, whatever their kind."""

import numpy as np
import pytest

from avcl_core.errors import IntegrityError
from avcl_core.evaluation.examples import Answer, MaskedFrames, Timeline, TimelineRow, read_examples, write_examples


def test_every_kind_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    mask = rng.random((2, 4, 4)) > 0.5
    shown = [
        Timeline("a", "clip a", (TimelineRow("dog", (0, 1), (1, 1)),)),
        MaskedFrames(
            "b", "clip b", rng.integers(0, 255, (2, 4, 4, 3), dtype=np.uint8), mask, ~mask, np.array([1, 0], bool)
        ),
        Answer("c", "video c", "How many?", "two", "three", "Audio Counting"),
    ]
    write_examples(tmp_path / "x" / "t.jsonl", shown)
    timeline, masked, answer = read_examples(tmp_path / "x" / "t.jsonl")
    assert (timeline, answer) == (shown[0], shown[2])
    assert isinstance(masked, MaskedFrames)
    assert np.array_equal(masked.frames, shown[1].frames)
    assert np.array_equal(masked.predicted, ~mask)
    assert masked.known.tolist() == [True, False]


def test_the_same_examples_are_the_same_bytes(tmp_path):
    example = MaskedFrames(
        "b", "t", np.zeros((1, 2, 2, 3), np.uint8), *[np.zeros((1, 2, 2), bool)] * 2, np.ones(1, bool)
    )
    write_examples(tmp_path / "1", [example])
    write_examples(tmp_path / "2", [example])
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_no_file_holds_no_examples_and_a_damaged_line_is_named(tmp_path):
    assert read_examples(tmp_path / "none.jsonl") == []
    (tmp_path / "bad.jsonl").write_text('{"example": "Answer", "key": "k"}\n')
    with pytest.raises(IntegrityError, match="line 1"):
        read_examples(tmp_path / "bad.jsonl")
