"""EWC, LwF and DER++ over any model and any kind of output, in small."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from avcl_core.methods.base import Method, Update
from avcl_core.ownership import Owners, Snapshot
from avcl_core.replay.memory import Memory


def distance(kind, student, teacher):
    """Mean distance between two outputs of a kind."""
    if kind in ("classes", "tokens"):
        student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
        return functional.kl_div(student, teacher, log_target=True, reduction="none").sum(-1).mean()
    if kind in ("labels", "mask"):
        return functional.binary_cross_entropy_with_logits(student, teacher.sigmoid())
    return functional.mse_loss(student, teacher)


class EWC(Method):
    """A quadratic penalty weighted by the empirical Fisher information of past experiences."""

    def __init__(self, model, tasks, options, seed):
        super().__init__(model, tasks, options, seed)
        self.past = []

    def step(self, current, replayed):
        parts = self.losses(current)
        values = dict(self.model.named_parameters())
        for entry in self.past:
            terms = [(f * (values[n] - entry["values"][n]).square()).sum() for n, f in entry["fisher"].items()]
            parts[f"ewc:{entry['experience']}"] = torch.stack(terms).sum() * current.share
        yield Update(parts)

    def after(self, experience, data):
        live = {n: p for n, p in Owners(self.model).match().items() if p.requires_grad and not n.startswith("heads.")}
        fisher = {name: torch.zeros_like(p) for name, p in live.items()}
        for batch in data.batches(size=1):
            outputs = self.model(batch, self.context(batch, training=False))
            loss = self.tasks[batch.task].nll(outputs, batch.targets).sum()
            for name, grad in zip(live, torch.autograd.grad(loss, list(live.values()), allow_unused=True), strict=True):
                if grad is not None:
                    fisher[name] += grad.square() / len(data.keys())
        values = {name: p.detach().clone() for name, p in live.items()}
        self.past.append({"experience": experience.name, "fisher": fisher, "values": values})

    def state(self):
        return {"past": self.past}

    def load(self, state):
        self.past = list(state["past"])


class LwF(Method):
    """Old heads answer new inputs as the model did before the experience; the frozen old heads are only read."""

    def __init__(self, model, tasks, options, seed):
        super().__init__(model, tasks, options, seed)
        self.teacher, self.last = {}, {}

    def step(self, current, replayed):
        parts = self.losses(current)
        for task, experience in self.last.items():
            if self.tasks[task].question and "question" not in current.inputs:
                continue  # an old head that needs inputs which this task does not have
            asked = replace(current, task=task, experience=experience).question(hidden=False)
            taught = Snapshot(self.teacher).call(self.model, asked, self.context(asked, training=False))
            learnt = self.model(asked, self.context(asked, training=False))
            for name, kind in self.tasks[task].fields.items():
                parts[f"lwf:{task}:{name}"] = distance(kind, learnt[name], taught[name]) * current.row_share
        yield Update(parts)

    def after(self, experience, data):
        self.teacher = Owners(self.model).state()
        self.last = {**self.last, experience.task: experience.name}

    def state(self):
        return {"teacher": self.teacher, "last": self.last}

    def load(self, state):
        self.teacher, self.last = state["teacher"], dict(state["last"])


class DERpp(Method):
    """Replay of samples with the outputs they had, against both the outputs and the targets."""

    def __init__(self, model, tasks, options, seed):
        super().__init__(model, tasks, options, seed)
        self.memory = Memory(6, seed)

    def active(self, experience):
        return (*super().active(experience), "head:*", "task:*", "expert:*")

    def recall(self, batch_size, generator):
        return self.memory.draw(3, generator)

    def step(self, current, replayed):
        parts = self.losses(current)
        for batch in replayed:
            task = self.tasks[batch.task]
            outputs = self.model(batch, self.context(batch, training=True))
            dark = [distance(kind, outputs[name], batch.stored[name]) for name, kind in task.fields.items()]
            parts[f"{batch.experience}:dark"] = torch.stack(dark).sum() * batch.row_share
            parts[f"{batch.experience}:nll"] = task.nll(outputs, batch.targets).mean() * batch.row_share
        yield Update(parts)

    def after(self, experience, data):
        stored = {}
        with torch.no_grad():
            for batch in data.batches(keys=self.memory.candidates(experience.name, data.keys())):
                outputs = self.model(batch, self.context(batch, training=False))
                names = self.tasks[batch.task].fields
                stored |= {key: {name: outputs[name][row] for name in names} for row, key in enumerate(batch.keys)}
        self.memory.add(experience.name, data.keys(), stored)

    def state(self):
        return {"memory": self.memory.state()}

    def load(self, state):
        self.memory.load(state["memory"])
