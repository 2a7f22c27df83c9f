"""Reports: one self-contained page about a run, a comparison of several, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from avcl.report.comparison import Comparison
    from avcl_core.evaluation.record import RunRecord

__all__ = ["compare", "format_comparison_tables", "format_result_table", "render"]


def render(run_folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one self-contained ``report.html`` and return its path.

    Args:
        run_folders: one run folder: its report, in the folder itself, with figures in ``results/figures``; several: the
            comparison of the runs, in the folder that they share.
        out: another path for the page.

    Raises:
        ConfigError: no folder is given, or the runs cannot be compared (see :func:`compare`).
        IntegrityError: a file of a run folder is missing or malformed.
    """
    from avcl.report.page import render_comparison, render_run
    from avcl_core.errors import ConfigError

    folders = [Path(folder) for folder in run_folders]
    if not folders:
        raise ConfigError("no run folder is given; name at least one")
    if len(folders) == 1:
        return render_run(folders[0], out)
    return render_comparison(folders, out)


def compare(run_folders: Sequence[Path]) -> Comparison:
    """Group runs by problem, method, model and label and return mean ± std over seeds for every test set.

    A problem is a stream and the setting of its tasks; a label is what a sweep plan calls a variant. Runs of one row at one seed that
    differ in their configuration become rows of their own.

    Raises:
        ConfigError: the runs mix protocols, or runs of one stream differ in task id, test sets, metrics or (at one
            seed) in their samples, or a run is there twice.
        IntegrityError: a file of a run folder is missing or malformed.
    """
    from avcl.report.comparison import compare as compare_runs

    return compare_runs([Path(folder) for folder in run_folders])


def format_result_table(record: RunRecord) -> Table:
    """Return the results of one run as a table for the terminal."""
    from avcl.report.terminal import format_result_table as format_table

    return format_table(record)


def format_comparison_tables(comparison: Comparison) -> list[Table]:
    """Return one table per stream of a comparison for the terminal."""
    from avcl.report.terminal import format_comparison_tables as format_tables

    return format_tables(comparison)
