"""Shared residual adapters at the MLP sites of frozen towers, one head per task: the trunk of the baselines."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import PositiveInt

from avcl_core.adapters.residual import ResidualAdapter
from avcl_core.config.options import Options
from avcl_core.models.base import Model, Requires
from avcl_core.ownership import own
from avcl_core.task import Task
from shared_backbones.tower import Tower


class ResidualAdaptersOptions(Options):
    """Configuration of :class:`ResidualAdapters`."""

    bottleneck: PositiveInt = 16


class ResidualAdapters(Model):
    """Frozen towers with one shared residual adapter beside every MLP, and one head per task.

    The adapters are owned by ``shared``: what one task learns changes the features of all others, which is what
    continual-learning methods are compared on.
    """

    Config = ResidualAdaptersOptions
    requires = Requires(kinds=("mlp",), task_id=("given",))

    def __init__(
        self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: ResidualAdaptersOptions
    ) -> None:
        super().__init__(towers, tasks, options)
        for walk in self.walks:
            shapes = walk.shapes()
            for step in walk.steps:
                for name, subs in step.advance.items():
                    if subs[-1].kind == "mlp":
                        adapter = ResidualAdapter(shapes[name][step.name].width, options.bottleneck)
                        self.place(name, step.name, "add", own(adapter, "shared"))
