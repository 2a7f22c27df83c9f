"""The `avvp` command: `avvp train|test`, this task alone."""

from avcl_core.cli import task_app

main = task_app("avvp")
