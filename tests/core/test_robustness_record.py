"""What a run under corruptions leaves: other scores of clean samples are recorded, and expert usage is of the record's digest."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from avcl_core.collective import Collective
from avcl_core.data.corruptions import parse_corruptions
from avcl_core.errors import Stopped
from avcl_core.evaluation.evaluator import Evaluation
from avcl_core.evaluation.matrix import Cell
from avcl_core.evaluation.robustness import FILE, differing, read_robustness
from avcl_core.evaluation.usage_file import read_usage, usage_file
from avcl_core.running import launch
from avcl_core.running.robustness import _evaluate
from avcl_core.stream import Experience, concatenation
from avcl_core.training.preemption import Preemption

CORRUPTIONS = ["missing:audio", "audio_noise:0"]
TASK = SimpleNamespace(name="ave", primary="accuracy", ideal=100.0, oracles=())


def usage(weight: float) -> dict:
    told = {"rows": 2, "gates": [weight, 1 - weight], "first": [2.0, 0.0], "experts": ["cross 0", "uni 0"]}
    return {"samples": 2, "sites": {"audio 0": told}, "agreement": [], "total": {"audio": told}, "groups": {}}


@dataclass
class Loader:
    """Knows the corruption of the moment and what was evaluated."""

    seen: tuple[str, ...] = ("visual", "audio")
    now: str = "clean"
    calls: list[str] = field(default_factory=list)

    @contextmanager
    def corrupted(self, corruption):
        self.now = "clean" if corruption is None else corruption.text
        yield


@dataclass
class Run:
    """A run folder with one result, and what stands for its restored model."""

    folder: Path
    stored: float = 40.0
    weight: float = 0.75
    stop_at: str = ""
    loader: Loader = field(default_factory=Loader)
    said: list[str] = field(default_factory=list)

    def evaluate(self, test, split, matrix) -> launch.Tested:
        self.loader.calls.append(self.loader.now)
        if self.loader.now == self.stop_at:
            raise Stopped("asked to")
        stored = None if matrix is None else Cell("accuracy", {"accuracy": self.stored, "f": math.nan})
        metrics = {"accuracy": 40.0, "f": math.nan}
        return launch.Tested(
            TASK, Evaluation(metrics, {"majority": {"accuracy": 3.0}}, {}, (), usage(self.weight)), stored
        )

    def under(self, corruptions=CORRUPTIONS, digest: str = "1") -> Path:
        restored = SimpleNamespace(
            assembly=SimpleNamespace(loader=self.loader),
            trainer=SimpleNamespace(store=SimpleNamespace(folder=self.folder / "checkpoints")),
            collective=Collective(),
            console=launch.Console(say=self.said.append),
            tag="000001",
            when="after ave",
            tests=(SimpleNamespace(name="ave"),),
            evaluate=self.evaluate,
        )
        assert restored.__dict__.keys() - {"evaluate", "when"} <= launch.Restored.__dataclass_fields__.keys()
        folder = self.folder / FILE.parent
        folder.mkdir(parents=True, exist_ok=True)
        asked = parse_corruptions(list(corruptions), self.loader.seen)
        return _evaluate(restored, folder, asked, None, {"ave": []}, digest, Preemption(), True)

    @property
    def rows(self) -> dict[str, float]:
        """Corruption → weight of the first expert, by the one reader of expert usage."""
        found = read_usage(usage_file(self.folder / FILE.parent))
        return {row: tests["ave"].total["audio"].gates[0] for row, tests in found.items()}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    stream = concatenation("s", [Experience(0, "ave", "ave", ("a",), ("b",), ("c",))])
    (tmp_path / "run.json").write_text(json.dumps({"method": "finetune", "model": "m", "seed": 0}))
    (tmp_path / "stream.json").write_text(json.dumps(stream.to_json()))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    return Run(tmp_path)


def test_clean_samples_that_score_differently_are_recorded_and_said(run: Run) -> None:
    run.stored = 41.5
    line = "clean samples scored 40.00 here, the run stored 41.50 accuracy"
    run.stop_at = "audio_noise:0"
    with pytest.raises(Stopped):
        run.under()
    run.stop_at = ""
    folder = run.under()
    record = read_robustness(run.folder / FILE)
    assert [found.corruption for found in record.results] == ["clean", *CORRUPTIONS]
    assert record.stored["ave"]["accuracy"] == 41.5, "kept when the list goes on"
    json.loads((run.folder / FILE).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (folder / "table.md").read_text().count(line) == 1
    assert [said for said in run.said if line in said] == [f"ave: {line}; recorded"]


def test_equal_scores_leave_no_note(run: Run) -> None:
    table = (run.under() / "table.md").read_text()
    assert read_robustness(run.folder / FILE).stored == {}
    assert "stored" not in table
    assert run.said == []


def test_a_difference_names_the_metric_and_shows_the_digits_that_differ() -> None:
    assert differing({"a": 0.5, "b": 1.0}, {"a": 0.5, "b": 2.0}, "a", 100) == (
        "clean samples scored 1.00 here, the run stored 2.00 b"
    )
    tiny = differing({"a": 40.0, "b": 1.0, "c": math.nan}, {"a": 40.0000001, "b": 2.0, "c": 1.0}, "a", 100)
    assert tiny == "clean samples scored 40.0 here, the run stored 40.0000001 a (and 2 more metrics)"


def test_expert_usage_has_a_row_per_corruption_in_the_layout_of_runs(run: Run) -> None:
    folder = run.under()
    assert run.rows == {"clean": 0.75, "missing:audio": 0.75, "audio_noise:0": 0.75}
    assert sorted(p.name for p in folder.iterdir()) == ["results", "robustness.json", "table.md"]


def test_usage_without_a_finished_corruption_or_of_another_model_goes(run: Run) -> None:
    run.under(["missing:audio"])
    path = usage_file(run.folder / FILE.parent)
    # As left by a process that was killed between the two files.
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "audio_noise:0": entries["clean"]}))
    run.under(["missing:audio"])
    assert list(run.rows) == ["clean", "missing:audio"]
    run.weight, run.stop_at = 0.25, "missing:audio"
    with pytest.raises(Stopped):
        run.under(digest="2")
    assert run.rows == {"clean": 0.25}, "nothing of the other model is left"
    run.loader.calls.clear()
    run.stop_at = ""
    run.under(digest="2")
    assert run.loader.calls == ["missing:audio", "audio_noise:0"]
    assert set(run.rows.values()) == {0.25}
