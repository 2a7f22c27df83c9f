"""The record of one run: what evaluation summaries and reports need, read from the files of a run folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from avcl_core.errors import ConfigError, IntegrityError
from avcl_core.evaluation.ablation_names import EXPERIENCE_GIVEN
from avcl_core.evaluation.matrix import START, ResultMatrix
from avcl_core.stream import Stream

Line = TypeVar("Line", bound=BaseModel)


class _Line(BaseModel):
    """A line or file of a run folder. Keys that are not listed (times, ids) are of no concern here."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)


class Evaluation(_Line):
    """One line of ``results.jsonl``: one test set after one row. ``ideal`` is the task's value of a perfect primary."""

    row: str
    test: str
    task: str
    primary: str
    metrics: dict[str, float]
    controls: dict[str, dict[str, float]] = {}
    ablations: dict[str, dict[str, float]] = {}
    oracles: list[str] = []
    samples: int
    ideal: float = 100.0


class Step(_Line):
    """One logged optimisation step of ``metrics.jsonl``: the parts of the loss."""

    session: int
    experience: str
    epoch: int
    step: int
    loss: dict[str, float]


class Epoch(_Line):
    """The end of one epoch in ``metrics.jsonl``: validation metrics by experience; ``selected``: best epoch so far."""

    session: int
    epoch: int
    validation: dict[str, dict[str, float]]
    selected: bool


class OwnedTensor(_Line):
    """One entry of ``ownership.json``."""

    name: str
    owner: str
    numel: int
    kind: str


class Skipped(_Line):
    """One sample that ``on_bad_sample: skip`` left out."""

    task: str
    split: str
    key: str
    reason: str


class _Run(_Line):
    method: str
    model: str
    seed: int
    status: str = ""
    references: dict[str, str] = {}
    label: str | None = None
    command: str | list[str] = ""
    notes: list[str] = []
    skipped: list[Skipped] = []


@dataclass(frozen=True)
class Reference:
    """Another run that a run is judged by: its record once it is done, or the reason why there is none yet."""

    record: RunRecord | None
    reason: str = ""


@dataclass(frozen=True)
class RunRecord:
    """Everything that summaries and reports say about one run; no times, ids or machine paths of its own.

    Attributes:
        stream: the stream with its test sets, protocol and task id.
        method, model, seed: what was run.
        matrix: metrics of every test set after every row; its columns are the stream's test sets, in that order.
        controls: test set → name of a control → metrics.
        ablations: test set → what the trained model of the last row was predicted without, or with → metrics.
        given: the same matrix with the experience told to the model, where it had to find it: what routing errors cost.
        oracles: test set → names of the controls that look at the test targets: bounds, not trivial predictors.
        samples: test set → number of evaluated samples.
        ideals: test set → value of a perfect primary metric.
        steps, epochs: the training log, in order.
        owned: the ownership table.
        notes: lines that stand beside the scores (split overlaps, repaired records).
        skipped: samples that were left out.
        references: method → the run that trained the same configuration with it, where the run has such.
        label: what tables call it, where it was given a name (a variant of a sweep plan).
        command: the command that started the run; ``config``: the whole configuration as YAML text.
    """

    stream: Stream
    method: str
    model: str
    seed: int
    matrix: ResultMatrix
    controls: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    ablations: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    ideals: dict[str, float] = field(default_factory=dict)
    oracles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    given: ResultMatrix = field(default_factory=ResultMatrix)
    steps: tuple[Step, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    owned: tuple[OwnedTensor, ...] = ()
    notes: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    references: dict[str, Reference] = field(default_factory=dict)
    label: str | None = None
    command: str = ""
    config: str = ""

    @property
    def protocol(self) -> str:
        """The stream's protocol, ``clean`` or ``paper``."""
        return self.stream.protocol

    @property
    def experiences(self) -> tuple[str, ...]:
        """Experience names in stream order."""
        return tuple(experience.name for experience in self.stream.experiences)

    def parameters(self) -> dict[str, dict[str, int]]:
        """Return owner → kind (``parameter``, ``buffer``) → number of elements, in table order."""
        counts: dict[str, dict[str, int]] = {}
        for tensor in self.owned:
            kinds = counts.setdefault(tensor.owner, {})
            kinds[tensor.kind] = kinds.get(tensor.kind, 0) + tensor.numel
        return counts

    @classmethod
    def load(cls, run_folder: Path) -> RunRecord:
        """Read a run folder, finished or not; logs that do not exist yet are empty.

        Raises:
            IntegrityError: ``run.json``, ``stream.json`` or ``config.yaml`` is missing, or a file, line or field is
                malformed, or a result names a row or test set that the stream does not have.
        """
        run_folder = Path(run_folder)
        run = _parse(_Run, _json(run_folder / "run.json"), str(run_folder / "run.json"))
        stream = _stream(run_folder / "stream.json")
        steps: dict[tuple[int, str, int, int], Step] = {}
        epochs: dict[tuple[int, int], Epoch] = {}
        # A resumed run repeats the lines after its checkpoint with the same values, so the position is the identity.
        for where, entry in _lines(run_folder / "metrics.jsonl"):
            if "validation" in entry:
                epoch = _parse(Epoch, entry, where)
                epochs[epoch.session, epoch.epoch] = epoch
            else:
                step = _parse(Step, entry, where)
                steps[step.session, step.experience, step.epoch, step.step] = step
        owned_file = run_folder / "ownership.json"
        owned = _json(owned_file) if owned_file.exists() else []
        if not isinstance(owned, list):
            raise IntegrityError(f"{owned_file}: found {type(owned).__name__}, expected a list of tensors")
        return cls(
            stream=stream,
            method=run.method,
            model=run.model,
            seed=run.seed,
            **_results(run_folder / "results.jsonl", stream),
            steps=tuple(steps.values()),
            epochs=tuple(epochs.values()),
            owned=tuple(_parse(OwnedTensor, row, f"{owned_file} entry {n}") for n, row in enumerate(owned)),
            notes=tuple(dict.fromkeys(run.notes)),
            skipped=tuple(run.skipped),
            references={n: _reference(n, run_folder, place, stream, run.seed) for n, place in run.references.items()},
            label=run.label,
            command=run.command if isinstance(run.command, str) else shlex.join(run.command),
            config=_text(run_folder / "config.yaml"),
        )


def _reference(name: str, run_folder: Path, place: str, stream: Stream, seed: int) -> Reference:
    """Read the run that ``run.json`` names relative to its own folder; what does not fit is a reason, not an error."""
    folder = run_folder / place
    if not (folder / "run.json").is_file():
        return Reference(None, f"{name}: its run folder is not where it was made")
    run = _parse(_Run, _json(folder / "run.json"), str(folder / "run.json"))
    if run.status != "done":
        return Reference(None, f"{name}: its run is not done yet")
    found = RunRecord.load(folder)
    if (found.stream.digest, found.seed) != (stream.digest, seed):
        return Reference(None, f"{name}: its run is of another stream or seed")
    return Reference(found)


def _results(file: Path, stream: Stream) -> dict[str, Any]:
    """Return the fields of a record that come from ``results.jsonl``."""
    matrix, given = (ResultMatrix([test.name for test in stream.tests]) for _ in range(2))
    rows = (START, *(experience.name for experience in stream.experiences))
    task_of = {test.name: stream.experience(test.experience).task for test in stream.tests}
    controls: dict[str, dict[str, dict[str, float]]] = {}
    ablations: dict[str, dict[str, dict[str, float]]] = {}
    samples: dict[str, int] = {}
    ideals: dict[str, float] = {}
    oracles: dict[str, tuple[str, ...]] = {}
    for where, entry in _lines(file):
        line = _parse(Evaluation, entry, where)
        for what, value, known in (("row", line.row, rows), ("test", line.test, tuple(task_of))):
            if value not in known:
                raise IntegrityError(
                    f"{where}: {what} {value!r} is not in stream {stream.name}; expected one of {known}"
                )
        if line.task != task_of[line.test]:
            raise IntegrityError(
                f"{where}: task of test set {line.test!r} is {line.task!r}, stream.json says {task_of[line.test]!r}"
            )
        try:
            matrix.record(line.row, line.test, line.primary, line.metrics)
        except IntegrityError as error:
            raise IntegrityError(f"{where}: {error}") from error
        for kind, told, kept in (("control", line.controls, controls), ("ablation", line.ablations, ablations)):
            for name, metrics in told.items():
                if line.primary not in metrics:
                    raise IntegrityError(f"{where}: {kind} {name!r} lacks the primary metric {line.primary!r}")
                kept.setdefault(line.test, {})[name] = dict(metrics)
        if EXPERIENCE_GIVEN in line.ablations:
            try:
                given.record(line.row, line.test, line.primary, line.ablations[EXPERIENCE_GIVEN])
            except IntegrityError as error:
                raise IntegrityError(f"{where}: {EXPERIENCE_GIVEN}: {error}") from error
        samples[line.test] = line.samples
        ideals[line.test] = line.ideal
        oracles[line.test] = tuple(line.oracles)
    return {
        "matrix": matrix,
        "given": given,
        "controls": controls,
        "ablations": ablations,
        "samples": samples,
        "ideals": ideals,
        "oracles": oracles,
    }


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise IntegrityError(f"{file}: not found; expected a run folder, which has a {file.name}") from error
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{file}: is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise IntegrityError(f"{file}: is not JSON (line {error.lineno}: {error.msg})") from error


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of a JSON-lines file; nothing if it does not exist yet."""
    if not file.exists():
        return
    # Not str.splitlines: it would also cut at line separators inside JSON strings.
    for number, text in enumerate(_text(file).removesuffix("\n").split("\n"), start=1):
        if number == 1 and not text:
            return
        where = f"{file} line {number}"
        try:
            entry = json.loads(text)
        except json.JSONDecodeError as error:
            raise IntegrityError(
                f"{where}: is not JSON ({error.msg}); a line cut by an interruption is repaired by resuming the run"
            ) from error
        if not isinstance(entry, dict):
            raise IntegrityError(f"{where}: found {type(entry).__name__}, expected an object")
        yield where, entry


def _parse(kind: type[Line], entry: Any, where: str) -> Line:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "(whole)"
        raise IntegrityError(f"{where}: field {name}: found {first['input']!r}; {first['msg']}") from error


def _stream(file: Path) -> Stream:
    record = _json(file)
    try:
        return Stream.from_json(record)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise IntegrityError(f"{file}: is not a stream record ({type(error).__name__}: {error})") from error
