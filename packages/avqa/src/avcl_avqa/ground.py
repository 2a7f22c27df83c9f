"""The grounding generation stage: does this frame belong to this second of sound? It trains the head's first three steps alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from avcl_avqa import ReleaseOptions
from avcl_avqa.data import SECONDS
from avcl_avqa.dataset import NEGATIVE, OtherVideos, QuestionData
from avcl_avqa.grounding import match_nll
from avcl_avqa.head import MatchHead
from avcl_avqa.task import needs_both
from avcl_core.batch import Outputs
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import broken
from avcl_core.features import FeatureSpec
from avcl_core.seeding import numpy_generator, ordered
from avcl_core.stream import Experience
from avcl_core.task import Kind, Prediction, Task

HELD_OUT = 0.05
"""Share of the training videos that judge the stage."""
SYNTHETIC = re.compile(r"e?(sa|va|vv)[0-9]+")
"""Ids of MUSIC-AVQA's synthetic videos; the stage uses the real ones."""
TRUTH = np.array([1, 0])
"""The sample's own frame matches its sound, the other video's does not."""


@dataclass
class Moments:
    """Items ``<video_id>/<k>``: frame k of ten, second k of the sound, and a frame of another video of the split."""

    prepared: Prepared
    videos: tuple[str, ...]
    drawn: frozenset[str] = frozenset({NEGATIVE})
    _others: list[OtherVideos] = field(default_factory=list)

    @property
    def keys(self) -> tuple[str, ...]:
        """All items, by video."""
        return tuple(f"{video}/{place}" for video in self.videos for place in range(SECONDS))

    def inputs(self, key: str, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        """Return ``visual`` and ``negative`` uint8 ``[1, H, W, 3]`` and ``audio`` float32 ``[1, 32000]``.

        Without ``rng`` the negative depends on the key alone, so that a split is always judged on the same pairs.
        """
        video, place = _parts(key)
        if not self._others:
            self._others.append(OtherVideos(self.prepared, self.videos))
        draw = numpy_generator("grounding", key) if rng is None else rng
        return {
            "visual": self.prepared.frames(video)[place : place + 1],
            "audio": self.prepared.wave(video)[place : place + 1],
            NEGATIVE: self._others[0].draw(video, 1, draw),
        }

    def targets(self, key: str) -> dict[str, np.ndarray]:
        """Return ``match`` ``[2]``: 1 for the own frame, 0 for the other."""
        return {"match": TRUTH}

    def digest(self, key: str) -> str:
        """Return the digest of the video's media together with the place; DataError for a broken video."""
        video, place = _parts(key)
        return hashlib.sha256(f"{self.prepared.sample_digest(video)}/{place}".encode()).hexdigest()


def _parts(key: str) -> tuple[str, int]:
    video, _, place = key.rpartition("/")
    return video, int(place)


class GroundingStage(Task):
    """Audio-visual grounding generation (avmoe.md 4.6): match a second of sound with its own frame, against another video's.

    Outputs: ``match`` ``[b, 2, 1, 2]``, logits of own and other frame. Predictions and targets: ``match`` ``[b, 2]``.
    Five per cent of the training videos, chosen by a hash of their id, are held out; they are validation and test at once.
    """

    name = "avqa_ground"
    primary: ClassVar[str] = "accuracy"
    plain: ClassVar[Mapping[str, str]] = {NEGATIVE: "visual"}
    fields: Mapping[str, Kind] = {"match": "classes"}
    needs = (NEGATIVE,)
    labels = ("different", "same")

    def __init__(self, data: QuestionData) -> None:
        videos = dict.fromkeys(row.video_id for row in data.rows("train").values())
        real = [video for video in videos if not SYNTHETIC.fullmatch(video)]
        if len(real) < 4:
            found = f"{len(real)} of {len(videos)} that are not synthetic"
            raise broken(data.prepared.folder, "training videos", found, "at least 4", "prepare more videos")
        order = ordered(real, 0, "grounding")
        held = set(order[: max(2, round(HELD_OUT * len(order)))])
        self.prepared = data.prepared
        self.videos = {
            "train": tuple(video for video in real if video not in held),
            "val": tuple(video for video in real if video in held),
        }
        self.videos["test"] = self.videos["val"]
        self.splits_note = (
            f"{len(self.videos['train'])} real training videos; {len(held)} more are held out and judge the stage (validation "
            f"is test); {data.note}"
        )

    def experiences(self) -> tuple[Experience, ...]:
        """Return the whole stage as one experience."""
        train, val, test = (self.dataset(split).keys for split in ("train", "val", "test"))
        return (Experience(0, self.name, self.name, train, val, test, self.labels),)

    def dataset(self, split: str) -> Moments:
        """Return the items of ``split``."""
        return Moments(self.prepared, self.videos[split])

    def head(self, spec: FeatureSpec, experience: Experience) -> nn.Module:
        """Return a :class:`MatchHead`; ConfigError without a visual and an audio tower."""
        return MatchHead(needs_both(self.name, spec))

    def nll(self, outputs: Outputs, targets: Mapping[str, Tensor]) -> Tensor:
        """Return per item the mean cross-entropy of its two pairs ``[b]``."""
        return match_nll(outputs["match"])

    def decode(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return ``match`` ``[b, 2]``: 1 where frame and sound are judged to belong together."""
        return {"match": outputs["match"][:, :, 0].argmax(-1)}

    def score(self, predictions: Mapping[str, Prediction], targets: Mapping[str, Prediction]) -> dict[str, float]:
        """Return ``accuracy`` over both halves, ``accuracy/same`` and ``accuracy/different``, in percent.

        Raises:
            ValueError: predictions and targets have different keys.
        """
        if predictions.keys() != targets.keys():
            odd = sorted(predictions.keys() ^ targets.keys())
            raise ValueError(
                f"avqa_ground: predictions and targets differ in {len(odd)} samples, for example {odd[0]!r}"
            )
        keys = sorted(targets)
        right = np.stack([predictions[key]["match"] == targets[key]["match"] for key in keys])
        same, different = (100 * float(half.mean()) for half in right.T)
        return {"accuracy": (same + different) / 2, "accuracy/same": same, "accuracy/different": different}

    def controls(self, train: Mapping[str, Prediction], test: Mapping[str, Prediction]) -> dict[str, dict[str, float]]:
        """Score always the same judgement: half of all pairs match."""
        return {"always a match": self.score({key: {"match": np.ones_like(TRUTH)} for key in test}, test)}


def build(options: ReleaseOptions, prepared: Prepared, protocol: str) -> GroundingStage:
    """Return the stage over prepared data, as the package's plug-in builds it; both protocols judge alike."""
    return GroundingStage(QuestionData(prepared, options.annotations))
