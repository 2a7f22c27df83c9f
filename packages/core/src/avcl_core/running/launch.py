"""Starts, resumes and evaluates runs; translates every ending into a status and an exit code."""

from __future__ import annotations

import json
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from lightning_fabric import Fabric

from avcl_core.collective import Collective, current
from avcl_core.config.load import Source, read
from avcl_core.config.run import Parts, RunOptions, load_run, paths_below
from avcl_core.errors import AvclError, ConfigError, IntegrityError, RunError, Stopped
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.matrix import Cell, ResultMatrix
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.summary import write_results
from avcl_core.ownership import digest_tensors
from avcl_core.routing import CHOSEN, Routing
from avcl_core.running.assemble import Assembly, assemble, describe, notes
from avcl_core.running.code import code_digest
from avcl_core.running.folder import RunFolder, Silent
from avcl_core.running.initial import head_tensors
from avcl_core.running.lock import only_writer
from avcl_core.running.origin import refuse_training, selected_on_test, warm_notes
from avcl_core.running.provide import Bar, silent
from avcl_core.running.references import places
from avcl_core.stream import TestSet
from avcl_core.task import Task
from avcl_core.training.checkpoint import replace_text
from avcl_core.training.preemption import Preemption
from avcl_core.training.trainer import Trainer

RESUMABLE = ("workers",)
"""Top-level keys that may change between a stop and a resume: results do not depend on them."""


@dataclass(frozen=True)
class Console:
    """How a run speaks to its user.

    Attributes:
        say: prints a line.
        bar: progress bar of data work.
        progress: called with a line and the fraction of a session that is done.
    """

    say: Callable[[str], None] = lambda line: None
    bar: Bar = silent
    progress: Callable[[str, float], None] = lambda line, fraction: None


@dataclass(frozen=True)
class Tested:
    """One test set as :func:`evaluate` found it, and what the run itself stored for the same row (or nothing)."""

    task: Task
    evaluation: Evaluation
    stored: Cell | None

    @property
    def agrees(self) -> bool:
        """Whether the run stored nothing else."""
        return self.stored is None or self.stored == Cell(self.task.primary, self.evaluation.metrics)


def start(source: Source, command: Sequence[str], console: Console) -> Path | None:
    """Run a configuration from the beginning and return the run folder; ranks other than the first return nothing.

    Raises:
        ConfigError, IntegrityError, RunError, Stopped: with the exit codes of DESIGN.md section 7.
    """
    options, parts = _configured(source, alone=True)
    preemption = Preemption()
    with preemption.listening():
        fabric, collective = launch_fabric(options)
        console = console if collective.rank == 0 else Console()
        assembly = assemble(options, parts, fabric, collective, console.bar, preemption.check)
        folder = _create(assembly, command, collective)
        _announce(folder, assembly, console)
        return _drive(assembly, folder, collective, console, preemption, resume=False)


def create(source: Source, command: Sequence[str], console: Console) -> Path:
    """Make the folder of a run without training, ready for :func:`resume`; data that are missing are made.

    With references, every run computes with one thread unless ``threads`` says otherwise: as many as the machine has cores go at a time.

    Raises:
        ConfigError, IntegrityError, Stopped: as :func:`start`.
    """
    options, parts = _configured(source, alone=False)
    if options.references and options.threads is None:
        options = options.model_copy(update={"threads": 1})
    preemption = Preemption()
    with preemption.listening():
        # Nothing is computed here: no device, and no processes of the run.
        assembly = assemble(
            options, parts, Fabric(accelerator="cpu", devices=1), Collective(), console.bar, preemption.check
        )
        folder = _create(assembly, command, Collective())
        _announce(folder, assembly, console)
    folder.set_status("stopped")
    return folder.path


def _configured(source: Source, alone: bool) -> tuple[RunOptions, Parts]:
    """Validate the configuration of a new run (one that trains ``alone`` has no references) and make the folder of run folders."""
    options, parts = load_run(source)
    if options.model.get("imported"):
        raise ConfigError(
            f"{source.place(('model', 'imported'))}: model.imported: belongs to runs that avcl weights convert writes; leave it out"
        )
    if alone and options.references:
        raise ConfigError(
            f"{source.place(('references',))}: references: are trained by avcl run CONFIG; leave them out here (references=[])"
        )
    options.runs.mkdir(parents=True, exist_ok=True)
    return options, parts


def resume(path: Path, overrides: Sequence[str], console: Console) -> Path | None:
    """Continue a stopped run to its end and return its folder, as :func:`start`. ``overrides`` may set ``workers`` only.

    Raises:
        ConfigError: another key is overridden.
        IntegrityError: configuration, data or weights drifted; the message names which.
        RunError: another process is working on the run.
    """
    for text in overrides:
        if text.partition("=")[0] not in RESUMABLE:
            raise ConfigError(f"override {text!r}: a resumed run can change {', '.join(RESUMABLE)} only")
    folder = RunFolder.open(path)
    refuse_training(folder.read_json("run.json"))
    preemption = Preemption()
    with preemption.listening():
        assembly, collective, console = _reopen(folder, overrides, console, preemption)
        console.say(f"run {path}")
        if collective.rank:
            folder = Silent(path)
        begun = folder.store.latest() is not None
        if not begun:
            _refuse_drift(folder, assembly)
        if begun and folder.store.load().state["position"]["phase"] == "done":
            console.say("the run is done; nothing to resume")
        return _drive(assembly, folder, collective, console, preemption, resume=begun)


def _refuse_drift(folder: RunFolder, assembly: Assembly) -> None:
    """Raise IntegrityError where a run that has no commit yet was made with other data or weights; a commit tells that itself."""
    for name, then in folder.read_json("run.json")["digests"].items():
        now = assembly.digests.get(name, "none")
        if now != then:
            raise IntegrityError(
                f"{folder.path}: {name} changed since the run was made (was {then[:12]}, is {now[:12]}); start a new run"
            )


@dataclass(frozen=True)
class Restored:
    """A commit of a run, ready to be evaluated; nothing that is done with it changes the run.

    Attributes:
        tag: the commit; ``row``: the row of the result matrix that its model stands for.
        tests: the test sets of its session.
        console: silent on ranks other than the first.
    """

    assembly: Assembly
    trainer: Trainer
    collective: Collective
    console: Console
    tag: str
    row: str
    tests: tuple[TestSet, ...]

    @property
    def when(self) -> str:
        """Where in the stream the commit was made: ``before``, ``during`` or ``after`` an experience."""
        at = self.trainer.at
        word = "during" if at.phase == "train" else "before" if at.phase == "before" and at.session == 0 else "after"
        return f"{word} {self.row}"

    @property
    def last(self) -> bool:
        """Whether the commit's model is that of the last row, which a run predicts with ablations too."""
        return self.row == self.assembly.sessions[-1].row

    def evaluate(
        self,
        test: TestSet,
        split: str | None,
        matrix: ResultMatrix | None,
        features: bool = False,
        ablate: bool = False,
    ) -> Tested:
        """Evaluate one test set (or another split of its experience), beside what ``matrix`` has for the same row."""
        experience = self.assembly.stream.experience(test.experience)
        task = self.assembly.tasks[experience.task]
        found = self.trainer.evaluator.evaluate(
            self.trainer.method, task, experience, split or test.split, features, ablate
        )
        return Tested(task, found, None if matrix is None else matrix.cell(self.row, test.name))


def restore(
    path: Path,
    tag: str | None,
    console: Console,
    modalities: Sequence[str] | None = None,
    preemption: Preemption | None = None,
) -> Restored:
    """Restore a commit of a run, the latest by default.

    Args:
        modalities: what prediction sees, if not what the run saw.
        preemption: asked between batches whether to stop.
    """
    folder, preemption = RunFolder.open(path), preemption or Preemption()
    assembly, collective, console = _reopen(folder, (), console, preemption)
    trainer = assembly.trainer(Silent(path), preemption, collective, console.progress)
    tag = tag or trainer.store.latest()
    trainer.restore(tag)
    session = trainer.last_session()
    if modalities is not None:
        assembly.loader.modalities = tuple(modalities)
    return Restored(assembly, trainer, collective, console, str(tag), session.row, session.tests)


def evaluate(
    path: Path,
    tag: str | None,
    console: Console,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
    features: bool = False,
    routing: Routing = CHOSEN,
) -> dict[str, Tested]:
    """Evaluate a commit of a run (the latest by default) on the test sets of its session, without changing the run.

    As in the run, the model of the last row is predicted without its prompts and without its adapters too; under corruptions
    (:mod:`avcl_core.running.robustness`) it is not, which would multiply their cost.

    Args:
        split: another split than that of the test sets.
        modalities: what prediction sees, if not what the run saw.
        features: whether to return the towers' mean final features too.
        routing: where hidden samples are sent, if not where the model sends them.

    Returns:
        test set → what was found; nothing on ranks other than the first.
    """
    run = restore(path, tag, console, modalities)
    run.trainer.evaluator.routing = routing
    as_in_run = split is None and modalities is None and routing == CHOSEN
    matrix = RunRecord.load(path).matrix if as_in_run else None
    found = {test.name: run.evaluate(test, split, matrix, features, run.last) for test in run.tests}
    return found if run.collective.rank == 0 else {}


def command_line() -> list[str]:
    """Return the command that the user typed, with the program's short name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _create(assembly: Assembly, command: Sequence[str], collective: Collective) -> RunFolder:
    """Make the run folder on the first rank; ``run.json`` comes last, so a folder that has it is complete."""
    options = assembly.options
    method, model = options.method["name"], options.model["name"]
    # Read before anything is made: what a head starts from is on record, and a wrong source ends the run here.
    heads = {task: digest_tensors(head_tensors(path, task)) for task, path in options.init.items()}
    marks = selected_on_test(options.init)
    path = None
    if collective.rank == 0:
        path = RunFolder.create(options.runs, assembly.stream.name, method, options.seed).path
    path = next(p for p in collective.join(path) if p is not None)
    if collective.rank:
        return Silent(path)
    folder = RunFolder(path)
    folder.write_json("stream.json", assembly.stream.to_json())
    replace_text(path / "config.yaml", yaml.safe_dump(json.loads(options.model_dump_json()), sort_keys=False))
    record = {
        "format": 1,
        "status": "running",
        "method": method,
        "model": model,
        "label": options.label,
        "seed": options.seed,
        "command": list(command),
        "cwd": str(Path.cwd()),
        "notes": [*notes(assembly), *warm_notes(marks)],
        "skipped": list(assembly.skipped),
        "digests": dict(assembly.digests),
        "init": heads,
        "test_selected": marks,
        "libraries": {
            name: version(name) for name in ("avcl-core", "torch", "timm", "transformers", "lightning-fabric")
        },
        "code": code_digest(),
        "python": platform.python_version(),
    }
    if options.references:
        record["references"] = places(options.references, path.name)
    folder.write_json("run.json", record)
    return folder


def _reopen(
    folder: RunFolder, overrides: Sequence[str], console: Console, preemption: Preemption
) -> tuple[Assembly, Collective, Console]:
    source = read(folder.path / "config.yaml", overrides)
    options, parts = load_run(source)
    options = paths_below(options, Path(folder.read_json("run.json")["cwd"]))
    fabric, collective = launch_fabric(options)
    console = console if collective.rank == 0 else Console()
    return assemble(options, parts, fabric, collective, console.bar, preemption.check), collective, console


def launch_fabric(options: RunOptions) -> tuple[Fabric, Collective]:
    """Set threads, start the processes and return Fabric with the collective of its ranks; ConfigError without the device."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    wanted = options.fabric
    try:
        fabric = Fabric(accelerator=wanted.accelerator, devices=wanted.devices, precision=wanted.precision)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"fabric: {' '.join(str(error).split())}; avcl doctor lists the devices") from error
    fabric.launch()
    return fabric, current(fabric.device)


def _announce(folder: RunFolder, assembly: Assembly, console: Console) -> None:
    """Say what a new run is and what it will cost; one that goes on has said it."""
    console.say(f"run {folder.path}")
    for name, value in describe(assembly):
        console.say(f"  {name}: {value}")


def _drive(
    assembly: Assembly,
    folder: RunFolder,
    collective: Collective,
    console: Console,
    preemption: Preemption,
    resume: bool,
) -> Path | None:
    trainer = assembly.trainer(folder, preemption, collective, console.progress)
    if collective.rank:
        # The launcher ends the first rank when another one fails, so a stop is told by the first rank alone.
        with suppress(Stopped):
            _train(trainer, folder, resume)
        collective.barrier()
        return None
    with only_writer(folder.path):
        try:
            with _status(folder):
                _train(trainer, folder, resume)
        except Stopped:
            collective.barrier()
            raise
        write_results(folder.path)
        collective.barrier()
    return folder.path


def _train(trainer: Trainer, folder: RunFolder, resume: bool) -> None:
    if resume:
        trainer.resume()
    folder.event("start", position=vars(trainer.at))
    trainer.run()
    folder.event("done")


@contextmanager
def _status(folder: RunFolder) -> Iterator[None]:
    """Record how the block ended, where the disk still takes a record."""
    folder.set_status("running")
    try:
        yield
    except Stopped as error:
        folder.event("stopped", reason=str(error))
        folder.set_status("stopped")
        raise Stopped(str(error).replace("RUN", str(folder.path))) from None
    except Exception as error:
        details = error.details if isinstance(error, RunError) and error.details else {}
        with suppress(OSError):
            folder.event(
                "failed", error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc(), **details
            )
            folder.set_status("failed")
        if isinstance(error, AvclError):
            raise
        raise RunError(f"{type(error).__name__}: {error} (traceback in {folder.path / 'events.jsonl'})") from error
    folder.set_status("done")
