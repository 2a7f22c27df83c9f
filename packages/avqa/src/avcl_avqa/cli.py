"""The `avqa` command: this task alone, its grounding generation stage, and open-ended answering in AVQACL's two settings."""

from pathlib import Path
from typing import Annotated

import typer

from avcl_core.cli import console, task_app, test_command, training_command


def _extend(app: typer.Typer) -> None:
    summary = "Train the grounding stage, from which the task's head can start"
    training_command(app, "ground", "avqa", "ground", summary, task="avqa_ground")
    summary = "Train an expert for each type of open-ended questions, and write experts and anchors as files"
    training_command(app, "train-all", "avqa", "open_embedded", summary, task="avqa_open", then=_export)
    test_command(app, "test-all", "avqa_open", "Answer every test set of a run of experts")

    summary = "Train on AVQACL's increments with the benchmark's own method, corrected"
    training_command(app, "train-closed", "avqa", "closed_embedded", summary, task="avqa_closed")
    test_command(app, "test-closed", "avqa_closed", "Evaluate a run over a growing list; benchmark=true: its figures")

    @app.command("experts")
    def experts(run: Annotated[Path, typer.Argument(metavar="RUN")]) -> None:
        """Write the experts and anchors of a run as files of their own: RUN/experts/, RUN/anchors/."""
        _export(run)


def _export(run: Path) -> None:
    from avcl_avqa.open_outputs import export_experts

    with console() as shown:
        for path in export_experts(run, shown):
            print(path)


main = task_app("avqa", _extend)
