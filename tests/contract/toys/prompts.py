"""PHP in small: shared exit-reading adapters, generated prompts for both modalities, then task-owned prompts by depth."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from avcl_core.models.base import Model
from avcl_core.ownership import own
from avcl_core.sites import Bank, SiteModule
from avcl_core.walk import DualStream


class Exchange(SiteModule):
    """A shared adapter that reads what leaves the step, of both modalities."""

    reads = "exit"

    def __init__(self, width, other_width):
        super().__init__()
        self.map, self.other = nn.Linear(width, width), nn.Linear(other_width, width)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, own, other, ctx):
        return self.map(own + self.other(other).mean(1, keepdim=True))


class Generator(SiteModule):
    """Key and value rows from the mean of embedded tokens: one generator per task, used for both modalities."""

    def __init__(self, width, rows):
        super().__init__()
        self.basis = nn.Parameter(torch.randn(4, width) * 0.1)
        self.weights = nn.Linear(width, 2 * rows * 4)

    def forward(self, own, other, ctx):
        return self.weights(own.mean(1)).unflatten(1, (-1, 4)).softmax(-1) @ self.basis


class Rows(SiteModule):
    """Key and value rows of one block, owned by a task."""

    def __init__(self, width, rows=2):
        super().__init__()
        self.rows = nn.Parameter(torch.rand(2, rows, width) * 2 - 1)

    def forward(self, own, other, ctx):
        keys, values = self.rows[:, None].expand(-1, len(own), -1, -1)
        return keys, values


class Recalled(SiteModule):
    """What ``prepare`` put into the context."""

    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, own, other, ctx):
        return ctx.memo[self.key]


class Prompts(Model):
    def coupled(self, task):
        return task != "classes"  # as in PHP, some tasks have a contrastive term

    def make_walks(self):
        return (DualStream.lockstep(dict(self._towers()), [(b, b) for b in range(4)], second_block="whole"),)

    def __init__(self, towers, tasks, options):
        super().__init__(towers, tasks, options)
        shapes = self.walks[0].shapes()
        visual, audio = shapes["visual"], shapes["audio"]
        for kind in ("attn", "mlp"):
            self.place(
                "visual", f"0.{kind}", "add", own(Exchange(visual[f"0.{kind}"].width, audio["0.attn"].width), "shared")
            )
        self.place("audio", "0.attn", "add", own(Exchange(audio["0.attn"].width, visual["0.attn"].width), "shared"))
        width = visual["0.attn"].width
        self.generator = Bank(lambda: Generator(width, 2), "task")
        self.bridge = own(nn.Linear(audio["0.attn"].width, width), "shared")
        self.bias = own(nn.Linear(width, audio["2.attn"].width), "shared")
        self.place("visual", "1.attn", "prefix", Recalled("visual"))
        self.place("audio", "2.attn", "input", Recalled("audio"))  # after the merge that begins block 2
        for name, found in (("visual", visual), ("audio", audio)):
            self.place(name, "3.attn", "prefix", Bank(lambda c=found["3.attn"].width: Rows(c), "task"))

    def prepare(self, batch, ctx):
        rows = self.generator(ctx.embedded["visual"], None, ctx)
        ctx.memo["visual"] = (rows[:, :2], rows[:, 2:])
        heard = self.generator(self.bridge(ctx.embedded["audio"]), None, ctx)
        ctx.memo["audio"] = self.bias(heard.mean(1, keepdim=True))

    def read(self, features, batch, ctx):
        if ctx.training and self.coupled(batch.task):
            seen, heard = (
                functional.normalize(features.final[name].mean((1, 2)), dim=-1) for name in ("visual", "audio")
            )
            rows = ctx.gather({"seen": seen, "heard": heard})
            pairs = torch.arange(len(rows["seen"]))
            ctx.aux["contrast"] = 0.1 * functional.cross_entropy(rows["seen"] @ rows["heard"].T, pairs)
        return super().read(features, batch, ctx)
