"""PAH in small: heads generated from prototype images, distilled from two snapshots, with a second update of prototypes."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from avcl_core.methods.base import Group, Method, Update
from avcl_core.models.base import Model, Requires
from avcl_core.ownership import Owners, Snapshot, evaluation_mode, own
from avcl_core.sites import Bank, SiteModule
from avcl_core.testing.toy_data import CLASSES

SIDE = 32


class Prototypes(SiteModule):
    """One image per class, learnt."""

    def __init__(self):
        super().__init__()
        self.images = nn.Parameter(torch.zeros(CLASSES, 3, SIDE, SIDE))


class GeneratedHeads(Model):
    requires = Requires(towers=("visual",))

    def __init__(self, towers, tasks, options):
        own(towers["visual"].set_trainable(True), "shared")
        super().__init__(towers, tasks, options)
        width = towers["visual"].info.width
        self.hyper = own(nn.Sequential(nn.Linear(width, 8), nn.LeakyReLU(), nn.Linear(8, width)), "shared")
        self.prototypes = Bank(Prototypes, "task")

    def make_head(self, task, experience):
        return None

    def pooled(self, images):
        tower = self.towers["visual"]
        tokens, aux = tower.embed(images)
        for sub in tower.subs:
            tokens = tower.run(sub, tokens, aux)
        return tokens.mean(1)

    def generate(self, names):
        """Return heads ``[n, classes, C]``."""
        return torch.stack([self.hyper(self.pooled(self.prototypes.slots[name].images)) for name in names])

    def forward(self, batch, ctx):
        features = self.pooled(batch.inputs["visual"][:, 0])
        asked = ctx.memo.get("heads")
        if asked is not None:
            return {"all": torch.einsum("bc,hkc->hbk", features, self.generate(asked))}
        names = list(dict.fromkeys(ctx.slots))
        which = torch.tensor([names.index(slot) for slot in ctx.slots])
        return {"logits": torch.einsum("bc,bkc->bk", features, self.generate(names)[which])}


class PrototypeReplay(Method):
    def __init__(self, model, tasks, options, seed):
        super().__init__(model, tasks, options, seed)
        self.old, self.teacher, self.generator = [], {}, {}

    def active(self, experience):
        return ("shared", "task:*")

    def optimizers(self, session):
        return {
            "main": (Group(("shared",)), Group(("task:*",), rate=0.5)),
            "prototypes": (Group(("task:*",), rate=0.1),),
        }

    def before(self, experience, data):
        self.old = [name for name in self.model.prototypes.slots if name != experience.name]
        with torch.no_grad():
            for batch in data.batches():
                for image, kind in zip(batch.inputs["visual"][:, 0], batch.targets["class"], strict=True):
                    self.model.prototypes.slots[experience.name].images[kind] = image

    def call(self, batch, heads):
        ctx = self.context(batch, training=True)
        ctx.memo["heads"] = heads
        return ctx

    def step(self, current, replayed):
        outputs = self.model(current, self.call(current, [current.experience, *self.old]))["all"]
        parts = {"hard": functional.cross_entropy(outputs[0], current.targets["class"])}
        if self.old:
            taught = Snapshot(self.teacher).call(self.model, current, self.call(current, self.old))["all"]
            parts["soft"] = (
                functional.kl_div(
                    outputs[1:].log_softmax(-1), taught.log_softmax(-1), log_target=True, reduction="none"
                )
                .sum(-1)
                .mean()
            )
            seen = self.model.pooled(self.model.prototypes.slots[self.old[0]].images).detach()
            kept = functional_call(self.model.hyper, dict(self.generator), (seen,))
            parts["generator"] = 0.1 * functional.mse_loss(self.model.hyper(seen), kept)
        yield Update({name: value * current.share for name, value in parts.items()}, optimizer="main")
        if self.old:  # from the weights that the first update has moved
            name = self.old[0]
            with evaluation_mode(self.model):
                scores = self.model.pooled(self.model.prototypes.slots[name].images) @ self.model.generate([name])[0].T
                loss = functional.cross_entropy(scores, torch.arange(CLASSES)) * current.share
            yield Update({"prototypes": loss}, ("task:*",), "prototypes")
        else:
            yield Update(
                {"none": sum(p.sum() for p in Owners(self.model).match(("task:*",)).values()) * 0.0},
                ("task:*",),
                "prototypes",
            )

    def after(self, experience, data):
        self.teacher = Owners(self.model).state()
        self.generator = {name: value.detach().clone() for name, value in self.model.hyper.named_parameters()}

    def state(self):
        return {"old": list(self.old), "teacher": dict(self.teacher), "generator": dict(self.generator)}

    def load(self, state):
        self.old, self.teacher, self.generator = list(state["old"]), state["teacher"], state["generator"]
