"""What AVQACL-MoE's authors promise to leave behind: expert and anchor files of each task, one file of answered questions per test."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from avcl_avqa.conversion import conversation
from avcl_avqa.open_task import OpenAnswering
from avcl_core.data.atomic import write_json
from avcl_core.errors import RunError
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.predicting import Choice
from avcl_core.models.anchor_experts import AnchorExperts
from avcl_core.running.launch import Console, restore
from avcl_core.task import Task
from avcl_core.texts import text_of


def results_name(task: OpenAnswering, experience: str) -> str:
    """Return ``task0_come_results.json`` and so on: the number and the first word of the experience's type."""
    number = [one.name for one in task.experiences()].index(experience)
    return f"task{number}_{experience.partition('_')[0].lower()}_results.json"


def answered(
    task: OpenAnswering, texts: Mapping[str, str], choices: Mapping[str, Choice] | None = None
) -> list[dict[str, Any]]:
    """Return a record for each question: the conversation it came from or would be written as, ``text``, and who answered.

    Args:
        texts: key → generated answer.
        choices: key → where the sample was sent: ``expert`` and its ``scores`` by what was compared.
    """
    records = []
    for key, text in texts.items():
        sent = None if choices is None else choices.get(key)
        told = {} if sent is None else {"expert": sent.slot, "scores": {n: dict(v) for n, v in sent.scores.items()}}
        records.append({**conversation(task.data.record(key)), "text": text, **told})
    return records


def export_results(folder: Path, task: Task, evaluation: Evaluation) -> None:
    """Write the answers of one test set as one file below an evaluation's folder, named as the authors name it.

    Raises:
        RunError: its questions are of several experiences.
    """
    assert isinstance(task, OpenAnswering)
    texts = {key: text_of(prediction["text"]) for key, prediction in evaluation.predictions.items()}
    experience = _experience(task, list(texts))
    write_json(folder / results_name(task, experience), answered(task, texts, evaluation.choices))


def _experience(task: OpenAnswering, keys: Sequence[str]) -> str:
    for one in task.experiences():
        if any(set(keys) <= set(one.keys(split)) for split in ("test", "val", "train")):
            return one.name
    raise RunError(f"{task.name}: {len(keys)} answered questions are of no single experience")


def export_stages(folder: Path, task: Task, evaluation: Evaluation) -> None:
    """Write the answers to one test set after every experience that the run has learnt since: ``stages/<n>_experts/<results name>``.

    Predictions of a stage are those that the run stored; nothing is predicted again.

    Raises:
        RunError: its questions are of several experiences.
    """
    assert isinstance(task, OpenAnswering)
    test = _experience(task, list(evaluation.predictions))
    stored = folder.parents[1] / "predictions"
    for stage, row in enumerate((one.name for one in task.experiences()), start=1):
        source = stored / row / f"{test}.jsonl.gz"
        if not source.is_file():
            continue
        rows = [json.loads(line) for line in gzip.decompress(source.read_bytes()).splitlines()]
        choices = {row["key"]: Choice(row["expert"], row["scores"]) for row in rows if "expert" in row}
        target = folder / "stages" / f"{stage}_experts" / results_name(task, test)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, answered(task, {row["key"]: row["text"] for row in rows}, choices))


def export_experts(run: Path, console: Console | None = None) -> list[Path]:
    """Write ``experts/expert_task_<k>.safetensors`` and ``anchors/anchor_task_<k>.safetensors`` of a run, with a JSON file beside each.

    Tensors of experts have the names that the language model's own checkpoint gives them. The JSON says of which experience they are,
    and what the frozen towers were: a file means nothing without them.

    Raises:
        RunError: the run's model has no experts.
    """
    held = restore(run, None, console or Console())
    model = held.trainer.method.model
    if not isinstance(model, AnchorExperts):
        raise RunError(f"{run}: model {held.assembly.options.model['name']} has no experts and anchors to write")
    towers = {name: tower.weights_digest() for name, tower in held.assembly.towers.items()}
    written = []
    for number, slot in enumerate(model.slots):
        about = {
            "experience": slot, "seed": held.assembly.options.seed, "expert": json.loads(model.options.expert.model_dump_json()),
            "towers": towers,
        }  # fmt: skip
        for kind, tensors in (("expert", model.expert(slot)), ("anchor", model.anchors.tensors(slot))):
            path = run / f"{kind}s" / f"{kind}_task_{number}.safetensors"
            path.parent.mkdir(exist_ok=True)
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
            write_json(path.with_suffix(".json"), about)
            written.append(path)
    return written
