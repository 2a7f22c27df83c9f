"""Runs a method over its sessions: before, train, after, evaluate; every position can be committed and found again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from avcl_core.collective import Collective
from avcl_core.errors import IntegrityError, RunError
from avcl_core.evaluation.evaluator import Evaluator
from avcl_core.evaluation.matrix import ResultMatrix
from avcl_core.methods.base import Method
from avcl_core.models.base import Model
from avcl_core.ownership import Owners, digest_tensors
from avcl_core.seeding import seed_step
from avcl_core.stream import Experience, Session, Stream
from avcl_core.task import Task
from avcl_core.training.checkpoint import TRAINED, Checkpoint, CheckpointStore
from avcl_core.training.drift import learning, refuse_drift, resting_digests
from avcl_core.training.loader import Loader
from avcl_core.training.optimizers import NamedOptimizer, named_optimizers
from avcl_core.training.options import TrainingOptions
from avcl_core.training.order import Pace, Portion, epoch_plan
from avcl_core.training.position import Best, Position
from avcl_core.training.preemption import Preemption
from avcl_core.training.recorder import Recorder
from avcl_core.training.session_data import SessionData
from avcl_core.training.splits import refuse_empty_splits
from avcl_core.training.stepper import Stepper


class Trainer:
    """The loop over sessions.

    Args:
        build: makes the model and its method anew; called at the start and for every fresh session.
        stream: what is learnt.
        sessions: how the method divides it.
        tasks, loader, options, seed: as everywhere.
        store: where checkpoints are committed.
        recorder: where records go.
        digests: what the run depends on (configuration, data, weights), name → digest; a resumed run must agree.
        preemption: asks to stop.
        collective: the ranks.
        autocast: mixed-precision context factory.
        progress: called with a line and the fraction of the session that is done.
    """

    def __init__(
        self,
        build: Callable[[], Method],
        stream: Stream,
        sessions: Sequence[Session],
        tasks: Mapping[str, Task],
        loader: Loader,
        options: TrainingOptions,
        seed: int,
        store: CheckpointStore,
        recorder: Recorder,
        digests: Mapping[str, str],
        preemption: Preemption,
        collective: Collective,
        autocast: Callable[[], Any],
        progress: Callable[[str, float], None] = lambda line, fraction: None,
        initialise: Callable[[Model, Experience, bool], None] = lambda model, experience, fresh: None,
    ) -> None:
        self.build, self.stream, self.sessions, self.tasks = build, stream, tuple(sessions), dict(tasks)
        self.loader, self.options, self.seed, self.store = loader, options, seed, store
        self.all_options = options
        self.recorder, self.digests, self.preemption = recorder, dict(digests), preemption
        self.collective, self.autocast, self.progress = collective, autocast, progress
        self.initialise = initialise
        sizes = {name: options.of({name}).evaluation_batch for name in self.tasks}
        self.evaluator = Evaluator(
            loader, stream.task_id == "hidden", options.evaluation_batch, collective, self._check, sizes
        )
        self.at = Position()
        self.matrix = ResultMatrix([test.name for test in stream.tests])
        self.best = Best()
        self.optimizers: dict[str, NamedOptimizer] = {}
        self.finished_optimizers: dict[str, Any] = {}
        self.method: Method = None  # type: ignore[assignment]  # built when the loop opens its first session
        self.frozen: dict[str, str] = {}
        self.resting: dict[str, str] = {}
        self.grown: set[str] = set()
        refuse_empty_splits(stream, self.sessions, options)

    # ------------------------------------------------------------------ the loop
    def run(self) -> ResultMatrix:
        """Do everything from the current position on and return the result matrix."""
        begins = self.method is None
        while self.at.phase != "done":
            session = self.sessions[self.at.session]
            method = self._open(session)
            if begins:
                self.commit()  # a stop in the very first hook must leave something to resume
                begins = False
            {"before": self._before, "train": self._train, "after": self._after, "evaluate": self._evaluate}[
                self.at.phase
            ](session, method)
        return self.matrix

    def _open(self, session: Session) -> Method:
        """Make sure that the session's model exists, with everything grown that its experiences need."""
        self.options = self.all_options.of({experience.task for experience in session.experiences})
        begins = self.at.phase == "before" and self.at.index == 0
        others = self.grown - {e.name for e in session.experiences}
        if self.method is None or (session.fresh and begins and others):
            self._rebuild()
        first = session.index if session.fresh else 0
        for earlier in self.sessions[first : session.index + 1]:
            self._grow(earlier.experiences)
        return self.method

    def _rebuild(self) -> None:
        self.method = self.build()
        self.method.collective = self.collective
        self.grown = set()
        self.frozen = Owners(self.method.model).frozen_digests()

    def _grow(self, experiences: Iterable[Experience]) -> None:
        for experience in experiences:
            if experience.name not in self.grown:
                seed_step(self.seed, "grow", experience.name)
                self.method.model.grow(experience)
                self.method.model.to(self.loader.device)
                self.grown.add(experience.name)
                self.frozen = {**Owners(self.method.model).frozen_digests(), **self.frozen}

    def last_session(self) -> Session:
        """Return the session whose training the current state comes from."""
        begins = self.at.phase == "before" and self.at.session > 0
        return self.sessions[self.at.session - 1 if begins else self.at.session]

    def _move(self, label: str = "", **change: Any) -> None:
        self.at = replace(self.at, **change)
        self.commit(label)

    def _check(self) -> None:
        """Stop within a pass if asked to. One rank alone must not leave a pass in which the others wait for it."""
        if self.collective.world == 1:
            self.preemption.check()

    def _pause(self) -> None:
        """Stop if any rank was asked to; for points that all ranks reach together, right after a commit."""
        if self._stop_requested():
            self.preemption.check()

    def _before(self, session: Session, method: Method) -> None:
        self._enter_hooks(session, method)
        for index in range(self.at.index, len(session.experiences)):
            experience = session.experiences[index]
            seed_step(self.seed, "before", experience.name)
            self.initialise(method.model, experience, session.fresh)
            method.model.calibrate(experience, self._data(experience), self.evaluator.hidden)
            method.before(experience, self._data(experience))
            self._move(index=index + 1)
            self._pause()
        self.recorder.ownership(Owners(method.model).report())
        self.best = Best()
        self.optimizers, self.finished_optimizers = {}, {}
        self._move(phase="train", index=0, epoch=0, step=0)
        self._pause()

    def _train(self, session: Session, method: Method) -> None:
        stepper, lengths = self._prepare_training(session, method)
        for epoch in range(self.at.epoch, self.options.epochs):
            if self.best.exhausted(epoch, self.options.patience):
                break
            plan = self._plan(session, epoch)
            augment = (self.seed, "augment", session.index, epoch)
            todo = plan[self.at.step :]
            requests = [stepper.my_requests(portion, augment) for portion in todo]
            batches = self.loader.stream(request for group in requests for request in group)
            for portion, group in zip(todo, requests, strict=True):
                step = self.at.step
                loss = stepper.step(
                    [next(batches) for _ in group],
                    len(portion.keys),
                    (self.seed, "step", session.index, epoch, step),
                    sum(lengths[:epoch]) + step,
                )
                if step % self.options.log_every == 0:
                    parts = _summed(self.collective.join({name: float(value) for name, value in loss.items()}))
                    record = {
                        "session": session.index,
                        "experience": portion.experience.name,
                        "epoch": epoch,
                        "step": step,
                    }
                    rates = {name: self.optimizers[name].rates() for name in stepper.gradients}
                    norms = {name: float(value) for name, value in stepper.gradients.items()}
                    self.recorder.metrics({**record, "loss": parts, "lr": rates, "gradient_norm": norms})
                    self.progress(_line(session, epoch, parts), (epoch + step / len(plan)) / self.options.epochs)
                self.at = replace(self.at, step=step + 1)
                stopping = self._stop_requested()
                if stopping or self.at.step % self.options.checkpoint_every == 0:
                    self.commit()
                if stopping:
                    self.preemption.check()
            self.commit()  # a stop during validation repeats nothing but the validation
            self._select(session, method, epoch)
            self._move(epoch=epoch + 1, step=0)
            self._pause()
        refuse_drift(f"{session.row}: training", method.model, self.frozen, self.resting)
        if self.best.state:
            Owners(method.model).load(self.best.state)
        self.finished_optimizers = {name: optimizer.state() for name, optimizer in self.optimizers.items()}
        self.best = Best()
        self._move(phase="after", index=0, epoch=0, step=0)
        self._pause()

    def _stop_requested(self) -> bool:
        """Whether any rank was asked to stop; then every rank is."""
        if self.collective.sum_number(float(self.preemption.requested is not None)) == 0:
            return False
        self.preemption.requested = self.preemption.requested or "another rank"
        return True

    def _prepare_training(self, session: Session, method: Method) -> tuple[Stepper, list[int]]:
        live = self._set_trainable(session, method)
        if not (self.at.epoch or self.at.step):
            self.resting = resting_digests(method.model, live)
        lengths = [len(self._plan(session, epoch)) for epoch in range(self.options.epochs)]
        self.optimizers = named_optimizers(method, session, self.options, lengths)
        if self.at.epoch or self.at.step:
            for name, optimizer in self.optimizers.items():
                optimizer.load(self.finished_optimizers[name])
        stepper = Stepper(
            method,
            self.tasks,
            self.stream,
            self.loader,
            self.options,
            live,
            self.optimizers,
            self.collective,
            self.seed,
            self.autocast,
        )
        return stepper, lengths

    def _plan(self, session: Session, epoch: int) -> list[Portion]:
        paces = {}
        for experience in session.experiences:
            own = self.all_options.of({experience.task})
            group = partial(self.loader.media, experience) if own.together else None
            paces[experience.name] = Pace(own.batch_size, own.epochs, group)
        return epoch_plan(session, self.seed, epoch, paces, self.collective.world, self.options.epochs)

    def _select(self, session: Session, method: Method, epoch: int) -> None:
        """Judge the epoch on the selection splits and keep the best owned tensors."""
        if self.options.selection == "last":
            return
        scores, skills = {}, []
        for experience in session.experiences:
            task = self.tasks[experience.task]
            predictions = self.evaluator.predict(method, experience, experience.selection)
            metrics = task.score(predictions, self.loader.targets(experience, experience.selection))
            scores[experience.name] = metrics
            skills.append(self.evaluator.skill(task, experience, metrics))
        skill = sum(skills) / len(skills)
        selected = skill > self.best.skill
        if selected:
            self.best = Best(skill, epoch, Owners(method.model).state())
        record = {"session": session.index, "epoch": epoch, "validation": scores, "skill": skill, "selected": selected}
        self.recorder.metrics(record)

    def _after(self, session: Session, method: Method) -> None:
        self._enter_hooks(session, method)
        for index in range(self.at.index, len(session.experiences)):
            experience = session.experiences[index]
            seed_step(self.seed, "after", experience.name)
            method.after(experience, self._data(experience))
            self._move(index=index + 1)
            self._pause()
        refuse_drift(f"{session.row}: after()", method.model, self.frozen, self.resting)
        self.recorder.ownership(Owners(method.model).report())
        self._move(phase="evaluate", index=0)

    def _evaluate(self, session: Session, method: Method) -> None:
        for index in range(self.at.index, len(session.tests)):
            test = session.tests[index]
            experience = self.stream.experience(test.experience)
            task = self.tasks[experience.task]
            self.progress(f"{session.row}: test {test.name}", index / len(session.tests))
            last = session.index + 1 == len(self.sessions)
            found = self.evaluator.evaluate(method, task, experience, test.split, ablate=last)
            self.matrix.record(session.row, test.name, task.primary, found.metrics)
            record = {
                "row": session.row,
                "test": test.name,
                "task": task.name,
                "primary": task.primary,
                "metrics": dict(found.metrics),
                "controls": {n: dict(v) for n, v in found.controls.items()},
                "ablations": {n: dict(v) for n, v in found.ablations.items()},
                "samples": len(found.predictions),
                "ideal": task.ideal,
                "oracles": sorted(task.oracles),
            }
            self.recorder.result(record, found, task.pack)
            self._move(index=index + 1)
            self._pause()
        if session.index + 1 < len(self.sessions):
            self._move(f"after-{session.row}", session=session.index + 1, phase="before", index=0)
        else:
            self._move(f"after-{session.row}", phase="done", index=0)

    def _set_trainable(self, session: Session, method: Method) -> tuple[str, ...]:
        patterns = learning(method, session.experiences)
        Owners(method.model).set_trainable(patterns)
        return patterns

    def _data(self, experience: Experience) -> SessionData:
        size = self.all_options.of({experience.task}).evaluation_batch
        return SessionData(self.loader, experience, size, self._check)

    def _enter_hooks(self, session: Session, method: Method) -> None:
        # The same state whether the session came here by training or by a resume.
        self._set_trainable(session, method)
        method.model.eval()

    # ------------------------------------------------------------------ commit and resume
    def commit(self, label: str = "") -> None:
        """Commit the position with everything that the rest of the run depends on."""
        method, owners = self.method, Owners(self.method.model)
        state = owners.state()
        if len(set(self.collective.join(digest_tensors(state) if self.collective.world > 1 else ""))) > 1:
            raise RunError("ranks hold different owned tensors; growth or a hook is not deterministic")
        training = self.at.phase == "train"
        optimizer = {n: o.state() for n, o in self.optimizers.items()} if training else self.finished_optimizers
        record = {
            "position": asdict(self.at),
            "grown": sorted(self.grown),
            "matrix": self.matrix.to_json(),
            "best": {"skill": self.best.skill if self.best.epoch >= 0 else None, "epoch": self.best.epoch},
            "offsets": self.recorder.offsets(),
            "digests": self.digests,
            "resting": self.resting,
        }
        if self.collective.rank == 0:
            held = {row.name: row.owner for row in owners.rows.values()}
            self.store.commit(Checkpoint(state, held, method.state(), optimizer, self.best.state, record), label)
        self.collective.barrier()

    def resume(self) -> None:
        """Take up the latest commit and cut the records back to it.

        Raises:
            IntegrityError: configuration, data or weights are not those of the commit, or tensors do not fit.
        """
        state = self.restore()
        self.recorder.rewind(state["offsets"])
        self.recorder.event("resume", position=state["position"])

    def restore(self, tag: str | None = None) -> Mapping[str, Any]:
        """Rebuild model, method and position from a commit (the latest by default) and return its state record."""
        checkpoint = self.store.load(tag)
        state = checkpoint.state
        for name in sorted(self.digests.keys() | state["digests"].keys()):
            now, then = self.digests.get(name, "none"), state["digests"].get(name, "none")
            if now != then:
                raise IntegrityError(
                    f"{self.store.folder}: {name} changed since the commit (was {then[:12]}, is {now[:12]}); "
                    "restore it, or start a new run"
                )
        self.at = Position(**state["position"])
        self.matrix = ResultMatrix.from_json(state["matrix"])
        self._rebuild()
        for session in self.sessions:
            self._grow(e for e in session.experiences if e.name in state["grown"])
        try:
            Owners(self.method.model).load(checkpoint.trained)
        except ValueError as error:
            raise IntegrityError(
                f"{self.store.folder / (tag or self.store.latest() or '') / TRAINED}: {error}"
            ) from error
        self.method.load(checkpoint.method)
        self.finished_optimizers = dict(checkpoint.optimizer)
        self.resting = dict(state.get("resting", {}))  # what was imported lies between two trainings and has none
        skill, epoch = state["best"]["skill"], state["best"]["epoch"]
        self.best = Best(float("-inf") if skill is None else skill, epoch, dict(checkpoint.selected))
        return state


def _summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Add up the loss parts of all ranks by name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def _line(session: Session, epoch: int, parts: Mapping[str, float]) -> str:
    losses = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
    return f"{session.row}: epoch {epoch + 1}, {losses}"
