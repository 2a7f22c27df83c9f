"""The `avqa` command: `avqa train|test`, this task alone, and `avqa ground`, its grounding generation stage."""

import typer

from avcl_core.cli import task_app, training_command


def _ground(app: typer.Typer) -> None:
    summary = "Train the grounding stage, from which the task's head can start"
    training_command(app, "ground", "avqa", "ground", summary, task="avqa_ground")


main = task_app("avqa", _ground)
