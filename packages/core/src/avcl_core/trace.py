"""A trace takes what modules tell about themselves while a batch is predicted; it observes and never changes a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ROUTER = "router"
"""Site of the choice among tasks, where the task is hidden; its gates are 1 for the slot that a sample was sent to."""


class Trace:
    """What was observed during one prediction, by site label such as ``audio 2 5 mlp`` (modality, stage, pair, site).

    A value has one row per row of the walk, ``[b·T, …]``, consecutive rows being the frames of one sample, or one row per sample.
    A module tells what is computed anyway or costs next to nothing; values stay on their device.

    Names that statistics are made of (:mod:`avcl_core.evaluation.usage`):

    * ``gates`` ``[rows, E]``: weights over experts, non-negative with sum 1;
    * ``residual`` ``[rows]``: size of what the module adds, relative to the tokens that it adds to;
    * anything else ``[rows]``: a number per row, of which the mean is reported.

    Args:
        wants_features: whether the listener wants features; without, telling them costs nothing.

    Attributes:
        frames: rows per sample; the model sets it.
        features: modality → mean of a tower's final tokens ``[b, C]``, one row per sample; empty where nobody wants them.
        observed: site → name → value.
        constants: site → name → list or tensor, for what does not depend on the sample: ``experts`` (their names), gate values.
    """

    def __init__(self, wants_features: bool = False) -> None:
        self.wants_features = wants_features
        self.frames = 1
        self.features: dict[str, Tensor] = {}
        self.observed: dict[str, dict[str, Tensor]] = {}
        self.constants: dict[str, dict[str, list | Tensor]] = {}

    def put(self, site: str, name: str, value: Tensor) -> None:
        """Keep a value of all rows.

        Raises:
            ValueError: this site has told ``name`` before: two modules use one label, or the walk ran twice.
        """
        known = self.observed.setdefault(site, {})
        if name in known:
            raise ValueError(f"site {site!r} tells {name!r} twice in one prediction; labels must be unique")
        known[name] = value.detach()

    def keep(self, site: str, name: str, values: Sequence[float] | Sequence[str] | Tensor) -> None:
        """Keep what does not depend on the sample; a later call replaces an earlier one."""
        # A tensor stays on its device: reading it here would make every batch wait for it.
        kept = values.detach() if isinstance(values, Tensor) else list(values)
        self.constants.setdefault(site, {})[name] = kept

    def tell_route(self, chosen: Sequence[str], slots: Sequence[str], device: torch.device) -> None:
        """Keep which of the ``slots`` each sample was sent to, as gates of the site :data:`ROUTER`."""
        index = torch.tensor([slots.index(slot) for slot in chosen])
        self.put(ROUTER, "gates", torch.nn.functional.one_hot(index, len(slots)).float().to(device))
        self.keep(ROUTER, "experts", slots)

    def tell_features(self, final: Mapping[str, Tensor]) -> None:
        """Keep the means over seconds and tokens of final features ``[b, T, N, C]``, in float32, if they are wanted.

        Raises:
            ValueError: a modality has told its features before.
        """
        if not self.wants_features:
            return
        for name, value in final.items():
            if name in self.features:
                raise ValueError(f"the features of {name!r} are told twice in one prediction")
            self.features[name] = value.detach().float().mean((1, 2))

    def of(self, rows: Tensor, total: int) -> Trace:
        """Return a view for a module that runs on the rows ``rows`` (indices) of ``total``; what it puts lands here in place.

        Rows that no view covers are NaN.
        """
        return _Part(self, rows, total)

    def spread(self, back: Sequence[int]) -> Trace:
        """Return a view for a pass over some of the samples; ``back`` says for every sample which of them stands for it."""
        return _Spread(self, back)


class _Spread(Trace):
    """The trace of a pass that computes samples with equal media once: what it hears counts for all of them."""

    def __init__(self, whole: Trace, back: Sequence[int]) -> None:
        super().__init__(whole.wants_features)
        self.back, self.count = list(back), max(back) + 1
        self.observed, self.constants, self.features = whole.observed, whole.constants, whole.features

    def put(self, site: str, name: str, value: Tensor) -> None:
        super().put(site, name, value.unflatten(0, (self.count, -1))[self.back].flatten(0, 1))

    def tell_features(self, final: Mapping[str, Tensor]) -> None:
        super().tell_features(
            {name: value[self.back] for name, value in final.items()} if self.wants_features else final
        )


class _Part(Trace):
    """The trace as a module sees it that runs on some of the rows."""

    def __init__(self, whole: Trace, rows: Tensor, total: int) -> None:
        self.whole, self.rows, self.total = whole, rows, total
        self.frames, self.observed, self.constants = whole.frames, whole.observed, whole.constants
        self.wants_features, self.features = False, whole.features  # features are of the whole batch

    def put(self, site: str, name: str, value: Tensor) -> None:
        known = self.observed.setdefault(site, {})
        if name not in known:
            known[name] = torch.full((self.total, *value.shape[1:]), torch.nan, dtype=value.dtype, device=value.device)
        known[name][self.rows] = value.detach()
