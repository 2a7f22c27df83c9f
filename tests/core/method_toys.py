"""A model without towers on points in space, so that whole runs of methods take no time and can be checked by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from avcl_core.config.options import Options
from avcl_core.features import Features
from avcl_core.models.base import Model
from avcl_core.ownership import Owners, own
from avcl_core.seeding import numpy_generator
from avcl_core.sites import Bank, SiteModule
from avcl_core.testing.toy_data import CLASSES, WORDS, latent
from avcl_core.testing.toy_run import ToyRun
from avcl_core.testing.toy_tasks import TOY_TASKS
from avcl_core.training.loader import Request
from avcl_core.training.options import TrainingOptions
from avcl_core.training.session_data import SessionData

WIDTH = 3
SHAPES = {"classes": (CLASSES,), "labels": (2, CLASSES), "mask": (2, 8, 8), "value": (), "tokens": (2, WORDS)}
OUTPUT = {"mask": "mask", "value": "score"}


class PointData:
    """One point per sample, near a corner that its class chooses; noise where it is augmented."""

    drawn = frozenset({"point"})

    def __init__(self, target, question):
        self.target, self.question = target, question

    def inputs(self, key, rng):
        point = np.eye(4, WIDTH, dtype=np.float32)[latent(key)] * 2 + numpy_generator("point", key).normal(
            0, 0.3, WIDTH
        )
        found = {"point": (point if rng is None else point + rng.normal(0, 0.01, WIDTH)).astype(np.float32)}
        return found | ({"question": np.array([3 + latent(key), 1], dtype=np.int64)} if self.question else {})

    def targets(self, key):
        return self.target(key)

    def digest(self, key):
        return key


class PointHead(nn.Module):
    """Linear in the feature; of masks behind a batch norm, of labels behind dropout, of tokens with the question's words."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.norm = nn.BatchNorm1d(WIDTH) if kind == "mask" else None
        self.drop = nn.Dropout(0.5 if kind == "labels" else 0.0)
        self.linear = nn.Linear(WIDTH, int(np.prod(SHAPES[kind])))
        self.words = nn.Embedding(WORDS, WIDTH) if kind == "tokens" else None

    def forward(self, features, batch):
        found = features.final["point"][:, 0, 0]
        if self.norm is not None:  # two values per sample and channel: a batch may be one sample
            found = self.norm(torch.stack([found, -found], 2))[..., 0]
        found = self.drop(found)
        if self.words is not None:
            found = found + self.words(batch.inputs["question"]).mean(1)
        found = self.linear(found)
        return {
            OUTPUT.get(self.kind, "logits"): found[:, 0]
            if self.kind == "value"
            else found.unflatten(1, SHAPES[self.kind])
        }


def point_task(kind, experiences=1, samples=(6, 3, 4)):
    """Return a task of an output kind on points, named after it."""

    class Points(TOY_TASKS[kind]):
        modalities = ()

        def dataset(self, split):
            return PointData(self.target, self.question)

        def head(self, spec, experience):
            return PointHead(kind)

    return Points(kind, experiences, samples=samples)


class Shift(SiteModule):
    """A task's own copy of something."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, own, other, ctx):
        return own + self.shift


class PointOptions(Options):
    """Whether tasks have copies of their own, and whether the model adds a term over the batch to the loss."""

    copies: bool = False
    aux: bool = False


class PointModel(Model):
    """A shared linear map, a part that tasks with labels train as well, and copies per task."""

    Config = PointOptions

    def __init__(self, towers, tasks, options):
        super().__init__(towers, tasks, options)
        self.common = own(nn.Linear(WIDTH, WIDTH), "shared")
        self.part = own(nn.Linear(WIDTH, WIDTH), "shared:part")
        self.copies = Bank(Shift, "task") if options.copies else None

    def coupled(self, task):
        return self.options.aux

    def active(self, experience):
        part = ("shared:part",) if experience.task == "labels" else ()
        return (*super().active(experience), *part)

    def features(self, batch, ctx):
        found = self.common(batch.inputs["point"])
        found = found + torch.tanh(self.part(found))
        if self.copies is not None:
            found = self.copies(found, None, ctx)
        if ctx.training and self.options.aux:
            rows = ctx.gather({"found": found})["found"]
            ctx.aux["spread"] = 0.1 * rows.var(0, unbiased=False).sum()
        return Features({"point": found[:, None, None]}, {})


def points(method, options=None, model_options=None, epochs=2, selection="best", lr=1e-2, **kinds):
    """Return a toy run on points of a method over tasks by kind with numbers of experiences."""
    training = TrainingOptions(
        epochs=epochs, batch_size=4, lr=lr, evaluation_batch=3, selection=selection, weight_decay=0, checkpoint_every=3
    )
    tasks = {kind: point_task(kind, count) for kind, count in kinds.items()}
    return ToyRun(dict, PointModel, method, tasks, "given", (), model_options, options, training)


class Bench:
    """A method outside a trainer: experiences begin and end by call."""

    def __init__(self, toy):
        self.toy, self.method, self.loader = toy, toy.build(), toy.loader()
        self.model = self.method.model
        for experience in toy.stream.experiences:
            torch.manual_seed(experience.index)
            self.model.grow(experience)
        self.model.eval()

    def data(self, experience):
        return SessionData(self.loader, experience, 4, lambda: None)

    def begin(self, experience):
        Owners(self.model).set_trainable(self.method.active(experience))
        self.model.eval()
        self.method.before(experience, self.data(experience))

    def end(self, experience):
        self.method.after(experience, self.data(experience))

    def batch(self, experience, count=4, split="train", stored=None):
        return self.loader.load(Request(experience, split, experience.keys(split)[:count], None, stored or {}))

    def move(self, names=("common",), scale=0.3, seed=0):
        """Add noise to parameters whose name begins so."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name.startswith(tuple(names)):
                    parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
