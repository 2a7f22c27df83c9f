"""M_J and M_F: golden values, the definition as loops, and what a level keeps of a probability."""

import numpy as np
import pytest
import torch

from avcl_avs.levels import HALF, THRESHOLDS, encode, foreground, reached
from avcl_avs.metrics import f_curve, f_score, frame_ious, mean_iou


def loop_f_score(prob: torch.Tensor, target: torch.Tensor) -> float:
    """The definition of tasks.md 3.5, one threshold after the other."""
    curves = []
    for values, truth in zip(prob, target, strict=True):
        if truth.sum() == 0:
            continue
        curve = []
        for threshold in torch.linspace(0, 1, 255):
            chosen = values >= threshold
            hits = float((chosen & (truth > 0)).sum())
            precision = hits / float(chosen.sum()) if chosen.any() else 0.0
            recall = hits / float(truth.sum())
            curve.append(1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0)
        curves.append(curve)
    return float(np.mean(curves, axis=0).max()) if curves else 0.0


def blobs(frames: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy probabilities over square targets; some frames are empty."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.zeros(frames, size, size)
    for frame in range(frames):
        if frame % 3 != 2:
            target[frame, frame : frame + size // 2, size // 4 : size // 2 + frame] = 1
    prob = (0.6 * target + 0.5 * torch.rand(target.shape, generator=generator)).clamp(0, 1)
    return prob, target


@pytest.mark.parametrize(
    ("prob", "target", "value"),
    [(1.0, 1, 1.0), (0.0, 0, 1.0), (1.0, 0, 0.0), (0.5, 1, 0.0), (0.50001, 1, 1.0)],
)
def test_iou_of_uniform_frames(prob, target, value):
    assert mean_iou(np.full((2, 6, 6), prob), np.full((2, 6, 6), target)) == pytest.approx(value, abs=1e-7)


def test_iou_is_a_mean_over_frames_of_any_form():
    prob = torch.zeros(3, 4, 4)
    prob[0, :2] = 0.9
    prob[1, 0] = 0.9  # a quarter of an empty frame
    target = torch.zeros(3, 4, 4)
    target[0, 1:3] = 1
    expected = (4 / 12 + 12 / 16 + 1) / 3
    assert mean_iou(prob, target) == pytest.approx(expected, abs=1e-7)
    assert mean_iou(prob[:, None], target[:, None].numpy() > 0) == pytest.approx(expected, abs=1e-7)
    np.testing.assert_allclose(frame_ious(prob.numpy() > 0.5, target.numpy() > 0), [4 / 12, 0.75, 1], atol=1e-7)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_f_score_of_a_constant(quarter):
    target = np.zeros((3, 8, 8))
    target[:, : 2 * quarter] = 1
    q = quarter / 4
    assert f_score(np.full((3, 8, 8), 0.5), target) == pytest.approx(1.3 * q / (0.3 * q + 1), abs=1e-6)
    if quarter == 1:
        assert f_score(np.full((3, 8, 8), 0.5), target) == pytest.approx(0.302326, abs=1e-6)
    assert f_score(target, target) == pytest.approx(1)


def test_histogram_equals_the_loop_over_thresholds():
    for seed, size in ((0, 12), (1, 17)):
        prob, target = blobs(7, size, seed)
        prob[0, 0, :4] = torch.tensor([0.5, float(THRESHOLDS[100]), 0.0, 1.0])
        assert f_score(prob, target) == pytest.approx(loop_f_score(prob, target), abs=1e-9)


def test_empty_frames_do_not_count_towards_f():
    prob, target = blobs(6, 9, 3)
    assert f_score(prob, target) == pytest.approx(f_score(prob[[0, 1, 3, 4]], target[[0, 1, 3, 4]]))
    assert f_score(prob, torch.zeros_like(target)) == 0.0
    assert f_score(torch.zeros_like(prob), target) == pytest.approx(loop_f_score(torch.zeros_like(prob), target))


def test_f_depends_on_what_is_judged_together_and_its_curve_adds_up():
    prob, target = blobs(6, 11, 5)
    prob[3:] = prob[3:] ** 4
    halves = [f_curve(encode(prob[part]).numpy(), target[part].numpy() > 0) for part in (slice(0, 3), slice(3, 6))]
    whole = f_score(prob, target)
    assert (halves[0] + halves[1]).score == pytest.approx(whole)
    assert sum(half.score for half in halves) / 2 > whole + 1e-3


def test_levels_keep_every_threshold_and_the_half():
    near = torch.tensor([0.0, 0.5, 1.0])
    exact = torch.cat([THRESHOLDS, torch.nextafter(THRESHOLDS[1:], torch.zeros(())), near])
    prob = torch.cat([exact, torch.nextafter(exact, torch.ones(())), torch.rand(5000)]).clamp(0, 1)
    levels = encode(prob)
    assert levels.dtype == torch.uint8
    np.testing.assert_array_equal(foreground(levels.numpy()), (prob > 0.5).numpy())
    counted = (prob[:, None] >= THRESHOLDS).sum(1)
    np.testing.assert_array_equal(reached(levels.numpy()), counted.numpy())
    assert THRESHOLDS[127] == 0.5
    assert encode(torch.tensor(0.5)) == HALF - 1


@pytest.mark.parametrize(
    ("prob", "target", "message"),
    [
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 4)), r"\[2, 3, 3\].*\[2, 3, 4\]"),
        (np.zeros((3, 3)), np.zeros((3, 3)), r"expected \[N, H, W\]"),
        (np.zeros((0, 3, 3)), np.zeros((0, 3, 3)), "at least one frame"),
        (np.full((1, 2, 2), 3.0), np.zeros((1, 2, 2)), "not logits"),
        (np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2)), "probabilities in 0…1"),
    ],
)
def test_what_is_no_probability_is_refused(prob, target, message):
    for metric in (mean_iou, f_score):
        with pytest.raises(ValueError, match=message):
            metric(prob, target)


def test_mmsegmentation_agrees_frame_by_frame():
    evaluation = pytest.importorskip("mmseg.evaluation")
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        prob, target = torch.rand(2, 24, 24, generator=generator)
        target = (target > 0.6).long()
        metric = evaluation.IoUMetric(iou_metrics=["mIoU"])
        areas = metric.intersect_and_union((prob > 0.5).long(), target, num_classes=2, ignore_index=255)
        intersection, union = (area[1].item() for area in areas[:2])
        assert mean_iou(prob[None], target[None]) == pytest.approx(intersection / union, abs=1e-6)
