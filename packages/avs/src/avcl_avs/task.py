"""The AVS task: in every second of a clip, which pixels show an object that is heard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from avcl_avs import predictions as stored
from avcl_avs.dataset import MaskData
from avcl_avs.head import SegmentationHead
from avcl_avs.levels import encode, foreground
from avcl_avs.losses import PUBLISHED_FRAMES, frame_bce
from avcl_avs.metrics import Curve, f_curve, frame_ious
from avcl_avs.options import SegmentationOptions
from avcl_avs.upsampling import UpsamplingHead
from avcl_core.batch import Outputs
from avcl_core.data.prepared import Prepared
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.examples import Example, MaskedFrames
from avcl_core.features import FeatureSpec
from avcl_core.stream import Experience
from avcl_core.task import Dataset, Kind, Prediction, Task


class Segmentation(Task):
    """Segmentation of the sounding objects in five frames.

    Outputs: ``logits`` ``[b, 5, 224, 224]`` and in the setting ``ms3`` ``avm`` ``[b, 5]``. Targets: ``mask`` bool
    ``[b, 5, 224, 224]`` and ``annotated`` bool ``[b, 5]``. Predictions: ``level`` uint8 ``[5, 224, 224]``, from which
    :mod:`avcl_avs.levels` reads the mask and all that the metrics ask.
    """

    name = "avs"
    primary: ClassVar[str] = "mean_iou"
    ideal: ClassVar[float] = 1.0
    fields: Mapping[str, Kind] = {"logits": "mask"}

    def __init__(self, data: MaskData, options: SegmentationOptions) -> None:
        self.data, self.options = data, options
        self.splits_note = data.note

    def experiences(self) -> tuple[Experience, ...]:
        """Return the whole task as one experience; ``paper`` selects the best epoch on the test split."""
        train, val, test = (self.data.keys(split) for split in ("train", "val", "test"))
        selection = "test" if self.data.protocol == "paper" else "val"
        return (Experience(0, self.name, self.name, train, val, test, self.labels, selection),)

    def dataset(self, split: str) -> Dataset:
        """Return the clips of ``split``."""
        return self.data.split(split)

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return an :class:`UpsamplingHead` or a :class:`SegmentationHead`, as the options say; ConfigError for unfit towers."""
        kind = UpsamplingHead if self.options.head == "upsampling" else SegmentationHead
        return kind(spec, self.options)

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return per clip the binary cross-entropy of its annotated frames, the mean over them and their pixels ``[b]``."""
        annotated = targets["annotated"]
        loss = frame_bce(outputs["logits"], targets["mask"], annotated)
        return loss.sum(1) / annotated.sum(1).clamp(min=1)

    def loss(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy, a mean over annotated frames, and in ``ms3`` λ₁ times the audio-visual match.

        The published match loss is a sum over the ten frames of its batch. It is ten times the mean here: equal at that batch,
        and independent of the batch size otherwise.
        """
        annotated = targets["annotated"]
        count = annotated.sum().clamp(min=1)
        parts = {"mask": frame_bce(outputs["logits"], targets["mask"], annotated).sum() / count}
        if "avm" in outputs:
            match = (outputs["avm"] * annotated).sum() / count
            parts["match"] = self.options.match_weight * PUBLISHED_FRAMES * match
        return parts

    def units(self, targets: Mapping[str, Tensor]) -> int:
        """Return the number of annotated frames."""
        return int(targets["annotated"].sum())

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return ``level``, uint8 ``[b, 5, 224, 224]``."""
        return {"level": encode(outputs["logits"].sigmoid())}

    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return ``mean_iou`` and ``f_score`` over the annotated frames, 0…1, and ``mean_iou/<category>`` in ``s4``.

        ``f_score`` is that of the whole split; with protocol ``paper`` the mean of those of the clips (tasks.md 3.5).

        Raises:
            ValueError: predictions and targets have different keys.
        """
        if predictions.keys() != targets.keys():
            odd = sorted(predictions.keys() ^ targets.keys())
            raise ValueError(f"avs: predictions and targets differ in {len(odd)} samples, for example {odd[0]!r}")
        ious: dict[str, list[np.ndarray]] = {}
        curves: list[Curve] = []
        for key in sorted(targets):
            known = targets[key]["annotated"]
            level, truth = predictions[key]["level"][known], targets[key]["mask"][known]
            ious.setdefault(self.data.rows[key].category, []).append(frame_ious(foreground(level), truth))
            curves.append(f_curve(level, truth))
        metrics = {
            "mean_iou": float(np.concatenate([values for part in ious.values() for values in part]).mean()),
            "f_score": float(np.mean([c.score for c in curves])) if self.data.protocol == "paper" else _whole(curves),
        }
        named = {f"mean_iou/{name}": float(np.concatenate(part).mean()) for name, part in sorted(ious.items()) if name}
        return metrics | named

    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Score no pixel, every pixel, and the places that training masks cover most, as many as they cover on average."""
        like = next(iter(test.values()))["mask"]
        masks = [target["mask"][target["annotated"]] for target in train.values()]
        covered = np.sum([mask.sum(0) for mask in masks], axis=0) / sum(map(len, masks))
        predictors = {
            "no pixel": np.zeros(like.shape, dtype=bool),
            "every pixel": np.ones(like.shape, dtype=bool),
            "usual place": np.broadcast_to(covered > np.quantile(covered, 1 - covered.mean()), like.shape),
        }
        levels = {name: encode(torch.from_numpy(mask.astype(np.float32))).numpy() for name, mask in predictors.items()}
        return {name: self.score({key: {"level": level} for key in test}, test) for name, level in levels.items()}

    def table(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return test M_J and M_F, then M_J by category, with four decimals (tasks.md 3.9)."""
        names = {"mean_iou": "test miou", "f_score": "test F_score"}
        names |= {name: name for name in metrics if name.startswith("mean_iou/")}
        return [(label, f"{metrics[name]:.4f}") for name, label in names.items() if name in metrics]

    def groups(self, key: str, target: Prediction) -> tuple[str, ...]:
        """Return the clip's category; the multi-source setting publishes neither categories nor numbers of sources."""
        category = self.data.rows[key].category
        return (category,) if category else ()

    def pack(self, prediction: Prediction) -> dict[str, Any]:
        """Return the levels as text (:func:`avcl_avs.predictions.unpack` reads them)."""
        return stored.pack(prediction)

    def examples(
        self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction], dataset: Dataset
    ) -> Sequence[Example]:
        """Return the frames as the tower sees them, with true and predicted masks at their size."""
        found = []
        for key, prediction in predictions.items():
            frames = dataset.inputs(key, None)["visual"]
            truth, shown = (
                _at_size(m, frames.shape[1]) for m in (targets[key]["mask"], foreground(prediction["level"]))
            )
            title = self.data.rows[key].category or key
            found.append(MaskedFrames(key, title, frames, truth, shown, targets[key]["annotated"]))
        return found


def _whole(curves: Sequence[Curve]) -> float:
    return sum(curves[1:], start=curves[0]).score


def _at_size(masks: np.ndarray, size: int) -> np.ndarray:
    """Return masks bool ``[T, S, S]`` at another size, to look at."""
    scaled = [Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST) for mask in masks]
    return np.stack([np.asarray(image) for image in scaled])


def build(options: SegmentationOptions, prepared: Prepared, protocol: str) -> Segmentation:
    """Return the task over prepared data, as the package's plug-in builds it."""
    return Segmentation(MaskData(prepared, options.setting, protocol), options)


def export_masks(folder: Path, task: Segmentation, evaluation: Evaluation) -> None:
    """Write the predicted masks of an evaluation below ``predictions/masks/[<category>/]<video>/``."""
    rows = task.data.rows
    places = {key: f"{rows[key].category}/{rows[key].video}".lstrip("/") for key in evaluation.predictions}
    count = stored.save_masks(folder / "predictions" / "masks", evaluation.predictions, places)
    print(f"{count} masks written to {folder / 'predictions' / 'masks'}")
