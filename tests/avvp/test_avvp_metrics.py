"""The ten parsing scores against a formulation with sets and loops, by hand, and LLP's golden values."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl_avvp.data import segment_labels, weak_labels
from avcl_avvp.metrics import parsing_f_scores

NAMES = [
    f"{level}_{name}" for level in ("segment", "event") for name in ("audio", "visual", "av", "type_av", "event_av")
]


def events_of(seconds: list[int]) -> list[set[int]]:
    """Maximal runs as sets of seconds."""
    groups = itertools.groupby(enumerate(seconds), key=lambda item: item[1])
    return [{index for index, _ in group} for value, group in groups if value]


def counted(level: str, pred: list[int], true: list[int]) -> tuple[int, int, int]:
    if level == "segment":
        p, t = {i for i, v in enumerate(pred) if v}, {i for i, v in enumerate(true) if v}
        return len(p & t), len(p - t), len(t - p)
    p, t = events_of(pred), events_of(true)

    def same(a: set[int], b: set[int]) -> bool:
        return Fraction(len(a & b), len(a | b)) >= Fraction(1, 2)

    hits = sum(any(same(a, b) for b in t) for a in p)
    return hits, len(p) - hits, sum(not any(same(a, b) for a in p) for b in t)


def oracle(pa, pv, ta, tv) -> dict[str, float]:
    """Everything with Python integers and fractions, video by video and class by class."""
    scores: dict[str, list[Fraction]] = {name: [] for name in NAMES}
    for video in range(len(pa)):
        classes = range(len(pa[video]))
        pairs = {"audio": (pa[video], ta[video]), "visual": (pv[video], tv[video])}
        both = lambda x, y: [[a & b for a, b in zip(r, s, strict=True)] for r, s in zip(x, y, strict=True)]  # noqa: E731
        pairs["av"] = (both(pa[video], pv[video]), both(ta[video], tv[video]))
        for level in ("segment", "event"):
            counts = {name: [counted(level, p[c], t[c]) for c in classes] for name, (p, t) in pairs.items()}
            counts["event_av"] = [
                tuple(map(sum, zip(a, v, strict=True))) for a, v in zip(counts["audio"], counts["visual"], strict=True)
            ]
            means = {}
            for name, per_class in counts.items():
                f1 = [Fraction(2 * tp, 2 * tp + fp + fn) for tp, fp, fn in per_class if tp + fp + fn]
                means[name] = sum(f1) / len(f1) if f1 else Fraction(1)
            means["type_av"] = (means["audio"] + means["visual"] + means["av"]) / 3
            for name, value in means.items():
                scores[f"{level}_{name}"].append(value)
    return {name: float(100 * sum(values) / len(values)) for name, values in scores.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
    st.sampled_from([0.1, 0.5, 0.9]),
)
def test_scores_equal_the_oracle(videos, classes, seconds, random, density):
    def marks():
        return [
            [[int(random.random() < density) for _ in range(seconds)] for _ in range(classes)] for _ in range(videos)
        ]

    arrays = [marks() for _ in range(4)]
    found = parsing_f_scores(*arrays)
    assert list(found) == NAMES
    assert found == pytest.approx(oracle(*arrays))


def one_video(**spans) -> np.ndarray:
    marks = np.zeros((1, 25, 10), dtype=int)
    for name, (onset, offset) in spans.items():
        marks[0, int(name[1:]), onset:offset] = 1
    return marks


@pytest.mark.parametrize(
    ("pred", "segment", "event"),
    [
        ({"c3": (2, 6), "c5": (0, 2)}, 30.0, 0.0),  # F 0.6 and 0; intersection 3 below half of the union 7
        ({"c3": (2, 8)}, 1000 / 12, 100.0),
        ({"c3": (3, 6)}, 200 / 3, 100.0),  # IoU of exactly one half counts
        ({"c3": (4, 6)}, 50.0, 0.0),
    ],
)
def test_one_video_by_hand(pred, segment, event):
    target, nothing = one_video(c3=(3, 9)), one_video()
    found = parsing_f_scores(one_video(**pred), nothing, target, nothing)
    assert found["segment_audio"] == pytest.approx(segment)
    assert found["event_audio"] == pytest.approx(event)
    assert found["segment_visual"] == found["event_av"] == 100.0
    assert found["segment_event_av"] == pytest.approx(segment)


def test_a_true_event_that_is_predicted_in_two_pieces():
    pred = one_video(c0=(0, 10))
    pred[0, 0, 5] = 0
    found = parsing_f_scores(pred, pred, one_video(c0=(0, 10)), one_video(c0=(0, 9)))
    # IoU 5/10 and 4/10 in audio: one TP, one FP, no FN. 5/9 and 3/10 in vision, where nothing is predicted at second 9.
    assert found["event_audio"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 3)), np.zeros((0, 25, 10)), np.full((1, 25, 10), 0.5), np.zeros((1, 25, 9))]
)
def test_unusable_arrays_are_refused(bad):
    good = np.zeros((1, 25, 10))
    with pytest.raises(ValueError, match=r"expected|0 and 1"):
        parsing_f_scores(good, bad, good, good)


NOTHING = [0.50, 10.08, 14.50, 8.36, 0.00]
GOLDEN = {
    ("AVVP_eval_audio_as_in_forks.csv", "truth"): [100.0] * 10,
    ("AVVP_eval_audio.csv", "truth"): [100.0] * 10,
    ("AVVP_eval_audio_as_in_forks.csv", "nothing"): NOTHING * 2,
    ("AVVP_eval_audio.csv", "nothing"): NOTHING * 2,
    ("AVVP_eval_audio_as_in_forks.csv", "weak"): [76.08, 60.35, 52.61, 63.01, 71.70, 63.03, 55.75, 44.69, 54.49, 61.60],
    ("AVVP_eval_audio.csv", "weak"): [76.12, 60.35, 52.61, 63.03, 71.73, 63.03, 55.75, 44.69, 54.49, 61.60],
    ("AVVP_eval_audio_as_in_forks.csv", "speech"): [16.53, 10.08, 14.50, 13.70, 14.38, 9.31, 10.08, 14.50, 11.30, 7.72],
    ("AVVP_eval_audio.csv", "speech"): [16.56, 10.08, 14.50, 13.72, 14.41, 9.31, 10.08, 14.50, 11.30, 7.72],
    ("AVVP_eval_audio_as_in_forks.csv", "repaired"): [
        99.96,
        100.0,
        99.99,
        99.98,
        99.96,
        99.95,
        100.0,
        99.98,
        99.98,
        99.95,
    ],
}


@pytest.mark.realdata
@pytest.mark.parametrize(("audio_file", "predictor"), GOLDEN)
def test_golden_values_of_llp(real_data, audio_file, predictor):
    folder = real_data / "annotations" / "llp"
    names, weak = weak_labels(folder / "AVVP_test_pd.csv")
    audio, visual = segment_labels(folder / audio_file, names), segment_labels(folder / "AVVP_eval_visual.csv", names)
    nothing, spread = np.zeros_like(audio), np.repeat(weak[:, :, None], 10, axis=2)
    speech = nothing.copy()
    speech[:, 0] = 1
    prediction = {
        "truth": (audio, visual),
        "nothing": (nothing, nothing),
        "weak": (spread, spread),
        "speech": (speech, nothing),
        "repaired": (segment_labels(folder / "AVVP_eval_audio.csv", names), visual),
    }[predictor]
    found = parsing_f_scores(*prediction, audio, visual)
    assert [round(value, 2) for value in found.values()] == GOLDEN[audio_file, predictor]
