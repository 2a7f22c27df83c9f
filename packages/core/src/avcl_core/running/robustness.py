"""Evaluates one run under a list of corruptions, in one process; what is finished is kept, so it can be stopped anywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from avcl_core.data.corruptions import CLEAN, KINDS, Corruption, parse_corruptions
from avcl_core.errors import Stopped
from avcl_core.evaluation.record import RunRecord
from avcl_core.evaluation.robustness import (
    CLEAN_TITLE,
    FILE,
    FORMAT,
    Finished,
    Robustness,
    TestEntry,
    differing,
    read_robustness,
    score_of,
    test_entry,
    write_robustness,
)
from avcl_core.evaluation.usage_file import add_usage, prune_usage, usage_file
from avcl_core.running.launch import Console, Restored, Tested, restore
from avcl_core.running.lock import only_writer
from avcl_core.training.checkpoint import file_digest, replace_text
from avcl_core.training.preemption import Preemption


def evaluate_corrupted(
    path: Path,
    tag: str | None,
    asked: str | Sequence[str],
    console: Console,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
) -> Path | None:
    """Evaluate a commit of a run on all test sets of its session under each corruption, and first of all under none.

    Writes ``robustness.json``, ``table.md`` and, of models with experts, ``results/expert_usage.json`` (its rows are the
    corruptions) to ``evaluations/robustness`` (the folder has the names of another commit, split or modalities as suffixes), after
    each corruption. A corruption that ``robustness.json`` has for the same commit, split and modalities is not evaluated again.
    Clean samples that score differently from what the run stored, as on another device, are no error: all files say so.

    Args:
        asked: corruptions as :func:`parse_corruptions` takes them; the other arguments as in :func:`launch.evaluate`.

    Returns:
        the folder; nothing on ranks other than the first.

    Raises:
        ConfigError: a corruption is wrong, or does not fit what the run uses; before anything is evaluated.
        RunError: another process is writing to the folder.
        Stopped: the user asked for it; the same command goes on.
    """
    parse_corruptions(asked, ("audio", "visual"))  # a wrong name should not wait for a model
    preemption = Preemption()
    with preemption.listening():
        run = restore(path, tag, console, modalities, preemption)
        seen = run.assembly.loader.seen
        corruptions = parse_corruptions(asked, seen)
        sets = _check(run, corruptions, split)
        parts = [FILE.parent.name, tag, split, "-".join(modalities or ())]
        name = "-".join(part for part in parts if part)
        folder = path / FILE.parent.with_name(name)
        digest = _digest(path, run.tag, split, seen)
        folder.mkdir(parents=True, exist_ok=True)
        if run.collective.rank == 0:
            with only_writer(folder):
                return _evaluate(run, folder, corruptions, split, sets, digest, preemption, modalities is None)
        _evaluate(run, folder, corruptions, split, sets, digest, preemption, modalities is None)
        return None


def _evaluate(
    run: Restored,
    folder: Path,
    corruptions: Sequence[Corruption],
    split: str | None,
    sets: Mapping[str, list[str]],
    digest: str,
    preemption: Preemption,
    own: bool,
) -> Path:
    first, path = run.collective.rank == 0, folder / FILE.name
    # The first rank alone reads, so that all ranks skip the same corruptions.
    record: Robustness | None = run.collective.join(_kept(folder, digest, run.console) if first else None)[0]
    wanted: list[Corruption | None] = [None, *corruptions]
    record_of_run = RunRecord.load(run.trainer.store.folder.parent)
    matrix = record_of_run.matrix if own and split is None else None
    left = [c for c in wanted if record is None or record.find(_text(c)) is None]
    if record is not None and len(left) < len(wanted):
        run.console.say(f"kept: {len(wanted) - len(left)} of {len(wanted)} were evaluated before")
    for number, corruption in enumerate(left):
        found: dict[str, Tested] = {}
        with run.assembly.loader.corrupted(corruption):
            for index, test in enumerate(run.tests):
                if run.collective.sum_number(float(preemption.requested is not None)):
                    raise _stopped(preemption, number, len(left))
                done = (number + index / len(run.tests)) / len(left)
                run.console.progress(f"{_text(corruption)}: test {test.name}", done)
                try:
                    found[test.name] = run.evaluate(test, split, matrix if corruption is None else None)
                except Stopped:
                    raise _stopped(preemption, number, len(left)) from None
        if not first:
            continue
        stored = {
            name: tested.stored for name, tested in found.items() if not tested.agrees and tested.stored is not None
        }
        for name, cell in stored.items():
            task, metrics = found[name].task, found[name].evaluation.metrics
            run.console.say(f"{name}: {differing(metrics, cell.metrics, task.primary, task.ideal)}; recorded")
        result = Finished(
            corruption=_text(corruption),
            title=CLEAN_TITLE if corruption is None else corruption.title,
            scores={name: score_of(tested.evaluation) for name, tested in found.items()},
        )
        tests = [_entry(name, tested, sets[name]) for name, tested in found.items()]
        if record is None:
            # Of another model or setting, or without a record of what it is of.
            for earlier in (path, usage_file(folder)):
                earlier.unlink(missing_ok=True)
        record = _joined(run, record, result, tests, digest, split)
        if corruption is None:
            record.stored = {name: dict(cell.metrics) for name, cell in stored.items()}
        for name, tested in found.items():
            if tested.evaluation.usage is not None:
                add_usage(usage_file(folder), result.corruption, name, tested.evaluation.usage)
        # Last, because a corruption that this file has counts as finished.
        replace_text(path, record.model_dump_json(indent=1) + "\n")
        replace_text(folder / "table.md", write_robustness(record, record_of_run.method))
    return folder


def _entry(name: str, tested: Tested, unchanged: list[str]) -> TestEntry:
    return test_entry(name, tested.task, len(tested.evaluation.predictions), unchanged)


def _joined(
    run: Restored, record: Robustness | None, result: Finished, tests: list[TestEntry], digest: str, split: str | None
) -> Robustness:
    """Add a result to the record: clean first, then corruptions of one kind together, as they came."""
    kinds = [CLEAN, *KINDS]
    results = [*(record.results if record is not None else ()), result]
    results.sort(key=lambda r: kinds.index(r.corruption.partition(":")[0]))
    return Robustness(
        format=FORMAT,
        digest=digest,
        commit=run.tag,
        when=run.when,
        split=split,
        modalities=list(run.assembly.loader.seen),
        tests=tests,
        results=results,
        stored={} if record is None else record.stored,
    )


def _kept(folder: Path, digest: str, console: Console) -> Robustness | None:
    """Return the record that an earlier call left, if it is of the same digest; expert usage that it does not have is dropped."""
    record = read_robustness(folder / FILE.name)
    if record is None:
        return None
    if record.digest != digest or record.format != FORMAT:
        console.say(f"{folder / FILE.name}: of another model or setting; everything is evaluated again")
        return None
    prune_usage(usage_file(folder), {(found.corruption, test) for found in record.results for test in found.scores})
    return record


def _check(run: Restored, corruptions: Sequence[Corruption], split: str | None) -> dict[str, list[str]]:
    """Refuse what does not fit the run's samples; return test set → inputs that no corruption changes."""
    loader, unchanged = run.assembly.loader, {}
    for test in run.tests:
        experience = run.assembly.stream.experience(test.experience)
        raw = loader.raw(experience, split or test.split)
        for corruption in corruptions:
            corruption.check(loader.seen, len(raw[corruption.modality]) if corruption.modality in raw else 0)
        task = run.assembly.tasks[experience.task]
        unchanged[test.name] = [name for name in raw if name not in task.modalities]
    return unchanged


def _digest(path: Path, tag: str, split: str | None, seen: Sequence[str]) -> str:
    # The manifest has the digests of all files of the commit, and its state those of configuration, data and towers.
    manifest = file_digest(path / "checkpoints" / tag / "manifest.json")
    record = {"format": FORMAT, "manifest": manifest, "split": split, "modalities": list(seen)}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _text(corruption: Corruption | None) -> str:
    return CLEAN if corruption is None else corruption.text


def _stopped(preemption: Preemption, done: int, wanted: int) -> Stopped:
    return Stopped(
        f"stopped by {preemption.requested or 'another rank'}; {done} of {wanted} corruptions were finished and are kept: the same "
        "command goes on"
    )
