"""Cross-modal adapters in every block, one set for all tasks: DG-SCT's adapters on the trunk of CLIP and CLAP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from avcl_core.adapters.cross_modal import CrossModalAdapter, CrossModalOptions
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.models.aligned import Aligned, AlignedOptions
from avcl_core.ownership import own
from avcl_core.task import Task
from shared_backbones.tower import Tower


class AdapterOptions(Options):
    """Sizes and switches of cross-modal adapters: see :class:`CrossModalOptions`."""

    latents: PositiveInt = 32
    reduction: PositiveInt = 8
    groups: PositiveInt = 2
    pre_norm: bool = True
    post_norm: bool = True
    batch_norm: bool = False
    cross: bool = True
    alpha: NonNegativeFloat = 0.2
    beta: NonNegativeFloat = 0.05
    gamma: NonNegativeFloat = 0.01

    def sizes(self) -> CrossModalOptions:
        """Return them for an adapter."""
        return CrossModalOptions(**{field.name: getattr(self, field.name) for field in fields(CrossModalOptions)})


class CrossModalAdaptersOptions(AlignedOptions):
    """Configuration of :class:`CrossModalAdapters`.

    Attributes:
        blocks: blocks behind whose attention and MLP they act; ``null``: all.
    """

    blocks: tuple[NonNegativeInt, ...] | None = None
    adapter: AdapterOptions = AdapterOptions()


class CrossModalAdapters(Aligned):
    """Shared cross-modal adapters (DG-SCT, Duan et al., NeurIPS 2023) in both directions, one head per task.

    The adapters are PHP's shallow ones, in all blocks where DG-SCT has them; a new adapter adds exactly nothing. What one
    task learns changes the features of all others.
    """

    Config = CrossModalAdaptersOptions
    options: CrossModalAdaptersOptions  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: CrossModalAdaptersOptions
    ) -> None:
        super().__init__(towers, tasks, options)
        count = sum(towers["visual"].info.depths)
        blocks = tuple(range(count)) if options.blocks is None else options.blocks
        wrong = [block for block in blocks if block >= count]
        if wrong or len(set(blocks)) != len(blocks):
            raise ConfigError(f"model.blocks: {list(blocks)}; expected different ones of blocks 0 to {count - 1}")
        try:
            place_cross_modal(self, blocks, options.adapter.sizes())
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error


def place_cross_modal(model: Aligned, blocks: tuple[int, ...], options: CrossModalOptions, part: str = "") -> None:
    """Put adapters of both modalities behind the attention and the MLP of every block, owned by ``shared``.

    Args:
        part: word in the labels of the sites, before the block.

    Raises:
        ValueError: the sizes do not divide.
    """
    shapes = model.walks[0].shapes()
    for block in blocks:
        size = {name: (shapes[name][f"{block}.attn"].tokens, shapes[name][f"{block}.attn"].width) for name in shapes}
        for half in ("attn", "mlp"):
            for name, other in (("audio", "visual"), ("visual", "audio")):
                label = " ".join(filter(None, (name, part, str(block), half)))
                adapter = CrossModalAdapter(size[name], size[other], options, label)
                model.place(name, f"{block}.{half}", "add", own(adapter, "shared"))
