"""What the walk hands to a head: final tokens and stage maps per tower, and their shapes ahead of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from avcl_core.errors import ConfigError


@dataclass(frozen=True)
class Features:
    """Tokens after the walk.

    Attributes:
        final: tower → tokens after the final norm ``[b, T, N, C]``.
        stages: tower → the map of every stage before down-sampling, each ``[b, T, N_s, C_s]``.
        plain: input → final tokens of the plain tower ``[b, T, N, C]``, for inputs that ``Task.plain`` names.
        similarity: modality → logits ``[b, T, K]`` of every second against the K texts of ``Task.texts``, where the model has a
            text side and the task has texts.
        distinct: the features of media that samples have in common, each once; ``None`` where no media are known to be shared.
            What a head computes of media alone, it need not compute per sample.
    """

    final: Mapping[str, Tensor]
    stages: Mapping[str, Sequence[Tensor]]
    plain: Mapping[str, Tensor] = field(default_factory=dict)
    similarity: Mapping[str, Tensor] = field(default_factory=dict)
    distinct: Distinct | None = None

    def select(self, rows: Tensor) -> Features:
        """Return the features of the samples ``rows``, without what samples have in common."""
        return Features(
            {name: value[rows] for name, value in self.final.items()},
            {name: tuple(value[rows] for value in maps) for name, maps in self.stages.items()},
            {name: value[rows] for name, value in self.plain.items()},
            {name: value[rows] for name, value in self.similarity.items()},
        )


@dataclass(frozen=True)
class Distinct:
    """``features`` of distinct media, and the row ``[b]`` of them that belongs to each sample."""

    features: Features
    rows: Tensor


@dataclass(frozen=True)
class TokenShape:
    """Shape of one tower's tokens at one place: grid (rows, columns), leading class tokens and width."""

    grid: tuple[int, int]
    width: int
    class_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens N."""
        return self.grid[0] * self.grid[1] + self.class_tokens


@dataclass(frozen=True)
class FeatureSpec:
    """Shapes of :class:`Features`, known before any data is seen, from which a task builds its head.

    Attributes:
        final: tower → shape of the final tokens.
        stages: tower → shapes of the stage maps, coarse last.
        similarity: modalities that the model compares with texts.
    """

    final: Mapping[str, TokenShape]
    stages: Mapping[str, tuple[TokenShape, ...]]
    similarity: tuple[str, ...] = ()


def needs_similarity(spec: FeatureSpec, option: str) -> None:
    """Refuse a model that does not compare what is seen and heard with texts.

    Args:
        option: what reads the similarity and can be chosen otherwise, ``tasks.ave.head=text``.

    Raises:
        ConfigError: a modality is not compared.
    """
    lacking = sorted({"visual", "audio"} - set(spec.similarity))
    if lacking:
        raise ConfigError(
            f"{option} needs the similarity of {' and '.join(lacking)} features to texts, which this model does not have; "
            "choose a model with a text side (avcl list models), or something else than this option"
        )
