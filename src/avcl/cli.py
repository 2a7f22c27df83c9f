"""The command line of AVCL; every heavy import waits until a command needs it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from avcl.cli_data import data_app
from avcl.cli_weights import weights_app
from avcl_core.terminal import console, guarded, split_arguments

app = typer.Typer(
    name="avcl",
    help="Audio-visual continual learning: train, resume, evaluate and compare one model on a stream of tasks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Show and import configurations.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")
app.add_typer(config_app, name="config")

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="CONFIG|KEY=VALUE", help="Configuration and dotted overrides.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT = "runs/php_embedded"


def main() -> None:
    """Entry point of ``avcl``."""
    guarded(app)


@app.command()
def run(arguments: Arguments = None) -> None:
    """Train a stream; write a run folder and its report.

    CONFIG is a file or the name of a shipped configuration. Without it three runs are trained on the embedded stream: PHP, and the
    references single and joint that its report compares it with; references=[] leaves these two out.
    references=[single,joint] also trains the same configuration with a model per task and with all tasks at once, in processes of
    their own beside the run, and the report shows the gap to them.
    Example: avcl run embedded method.name=finetune seed=1
    """
    from avcl_core.running.launch import command_line, start

    source = _source(arguments)
    if source.tree.get("references"):
        from avcl.references import run_with_references

        _finish(run_with_references(source, command_line()))
        return
    with console() as shown:
        path = start(source, command_line(), shown)
    _finish(path)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Leave the references of the run as they are.")] = False,
) -> None:
    """Continue a stopped or killed run, with its references where it has them.

    It goes on from the last commit, and the result equals an uninterrupted run. workers=N changes the loader processes;
    references=[single,joint] adds references to a run, finished or not.
    """
    if not alone:
        from avcl.references import add_references, finish_references
        from avcl_core.running.references import references_of

        overrides = add_references(run, overrides or [])
        if references_of(run):
            _finish(finish_references(run, overrides))
            return
    from avcl_core.running.launch import resume as take_up

    with console() as shown:
        path = take_up(run, overrides or [], shown)
    _finish(path)


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]")] = None,
    tag: Annotated[str | None, typer.Option(help="Checkpoint tag; by default the latest.")] = None,
) -> None:
    """Evaluate a commit of a run again.

    Writes predictions and says whether the metrics equal what the run stored. split=val judges another split,
    modalities=visual|audio hides the other input. features=true also writes the towers' features, averaged per sample, which
    the report then shows as a t-SNE map.

    Where the experience is hidden, to=given tells it, to=EXPERIENCE sends every sample to that one's expert, to=base to none
    (models of experts), and reads=text,audio lets the router compare nothing else.

    corruptions=standard evaluates the run with missing, noisy, blurred and covered inputs instead, and writes the table of what
    is left of each score; or name them: corruptions=[missing:audio,audio_noise:10,frame_blur:0.05,frame_occlusion:0.25,
    missing_segments:audio:1]. A stopped list goes on with the same command.
    """
    from avcl_core.cli import show_table
    from avcl_core.running.asked import KEYS, asked, refuse_unknown
    from avcl_core.running.launch import evaluate as judge
    from avcl_core.running.robustness import evaluate_corrupted
    from avcl_core.running.tested import write_evaluation

    given = {key: value for key, _, value in (text.partition("=") for text in keys or [])}
    refuse_unknown("eval", given, KEYS)
    how = asked("eval", given)
    if how.corruptions is not None:
        with console() as shown:
            written = evaluate_corrupted(run, tag, how.corruptions, shown, how.split, how.modalities)
        show_table(written)
        return
    with console() as shown:
        found = judge(run, tag, shown, how.split, how.modalities, how.features, how.routing)
    if found:
        write_evaluation(run, how.name(tag or "latest"), found, print)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="Where to write the page.")] = None,
) -> None:
    """Write report.html of a run, or of several compared."""
    from avcl.report import render

    print(render(runs, out))


@app.command()
def compare(runs: Annotated[list[Path], typer.Argument(metavar="RUN...")]) -> None:
    """Print methods side by side, with spread over seeds.

    Differences within the pooled standard error are called ties.
    """
    from rich.console import Console

    from avcl.report import compare as join
    from avcl.report import format_comparison_tables

    screen = Console()
    for table in format_comparison_tables(join(runs)):
        screen.print(table)


@app.command()
def sweep(
    arguments: Arguments = None,
    method: Annotated[list[str] | None, typer.Option(help="Method; repeat for several.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed; repeat for several. Instead of a plan's.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Of a plan: runs at a time, as processes of their own.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Of a plan: list what would run and what is done.")
    ] = False,
    table: Annotated[bool, typer.Option("--table", help="Of a plan: the table of what is done; run nothing.")] = False,
) -> None:
    """Run a plan of experiments, or several methods and seeds of one configuration, and compare them.

    A plan (avcl sweep avmoe) is a file with configs, variants and seeds. Runs that are done are not repeated and stopped ones
    go on, so the same command continues a sweep after anything. It ends with table.md, table.json and report.html in
    RUNS/PLAN. key=value holds for all its runs. The other form: avcl sweep CONFIG --method er --method lwf --seed 0 --seed 1.
    """
    from avcl import sweep as sweeps
    from avcl.sweep_plan import find_plan, is_plan, load_sweep
    from avcl_core.config.load import read
    from avcl_core.errors import ConfigError

    config, overrides = split_arguments(arguments or [])
    path = find_plan(config or DEFAULT)
    if not is_plan(read(path)):
        if jobs > 1 or dry_run or table:
            raise ConfigError(
                f"sweep {config or DEFAULT}: --jobs, --dry-run and --table are for a plan; this is one configuration"
            )
        compare(sweeps.sweep(str(path), overrides, method or [], seed or []))
        return
    if method:
        raise ConfigError(f"sweep {config}: --method is for one configuration; a plan names methods in its variants")
    sweep = load_sweep(path, overrides, seed or [])
    if dry_run:
        found = sweep.find()
        _print_rows(sweeps.overview(sweep, found))
        states = [found[run].state for run in sweep.todo]
        stale = sum(bool(found[run].differs) for run in sweep.todo)
        counts = ", ".join(f"{states.count(name)} {name}" for name in dict.fromkeys(states))
        print(f"{len(states)} runs: {counts}" + (f"; {stale} of those to run are stale" if stale else ""))
    elif table:
        sweeps.show_table(sweep)
    else:
        sweeps.run_sweep(sweep, jobs)


@app.command()
def bench(
    arguments: Arguments = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches that are timed, per task and phase.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure samples per second, where a step's time goes, and peak memory.

    Per task of the stream: front end without cache, loading, forward pass, full step. A configuration, or a task, a method and
    a size: avcl bench task=ave method=avmoe size=full; avs takes setting=s4|ms3. At full size, weights and data that are not
    here are replaced by random weights and a small generated world, and a step has one clip (training.batch_size=N).
    """
    from avcl.bench import bench as measure
    from avcl.bench import named_source
    from avcl_core.running.launch import Console

    added: list[str] = []
    if any(text.startswith("task=") for text in arguments or []):
        source, added = named_source(arguments or [])
    else:
        source = _source(arguments)
    full = "size=full" in (arguments or [])
    with console() as shown:
        found = measure(source, steps or (1 if full else 8), Console() if as_json else shown)
    if as_json:
        print(json.dumps({**found, "added": added}, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    for text in added:
        print(f"for measuring: {text}")
    _print_rows(
        {
            "task": row["task"],
            "phase": row["phase"],
            "batch": str(row["batch_size"]),
            "samples/s": f"{row['samples_per_second']:.4g}",
            "s/batch (min, max)": "{median:.3f} ({min:.3f}, {max:.3f})".format(**row["seconds_per_batch"]),
            "peak MiB": f"{row['peak_memory_bytes'] / 2**20:,.0f}",
            "split, s": ", ".join(f"{name} {value:.3f}" for name, value in row.get("split", {}).items()),
        }
        for row in found["tasks"]
    )


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="tasks|methods|models|towers|streams|runs")],
    as_json: AsJson = False,
) -> None:
    """List what is installed, shipped or recorded.

    A broken plug-in is listed with its error.
    """
    from avcl.listing import rows

    found = rows(kind)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    _print_rows(found)


@config_app.command("show")
def config_show(
    arguments: Arguments = None,
    size: Annotated[bool, typer.Option("--size", help="Print parameters, FLOPs and memory instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the complete configuration of a run.

    With --size, what it will cost: parameters by owner, FLOPs of a forward pass, memory of the weights. No weights are read;
    where its data are not here, a small generated world stands in, with its own number of classes.
    """
    import yaml

    from avcl_core.config.run import load_run

    if size:
        _print_size(arguments, as_json)
        return
    options, parts = load_run(_source(arguments))
    record = json.loads(options.model_dump_json())
    record["tasks"] = {name: json.loads(task.model_dump_json()) for name, task in parts.tasks.items()}
    for kind in ("model", "method"):
        record[kind] = {"name": record[kind]["name"], **json.loads(getattr(parts, kind).model_dump_json())}
    print(json.dumps(record, indent=1) if as_json else yaml.safe_dump(record, sort_keys=False).rstrip("\n"))


@config_app.command("import")
def config_import(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="Configuration of PHP's authors.")],
    out: Annotated[Path | None, typer.Argument(metavar="[OUT.yaml]", help="By default FILE.yaml beside it.")] = None,
    protocol: Annotated[str, typer.Option(help="clean, or paper: evaluate as PHP's paper does.")] = "clean",
) -> None:
    """Write the JSON configuration of PHP's authors as a configuration of ours.

    Prints what becomes of every key, and which ones are ignored and why. A key that is not in their files is an error.
    Example: avcl config import ave_llp_avqa.json && avcl run ave_llp_avqa.yaml
    """
    from avcl.php_json.imported import base_of, import_config
    from avcl_core.errors import ConfigError

    out = file.with_suffix(".yaml") if out is None else out
    if out.exists():
        raise ConfigError(f"{out}: exists already; name another file, or remove it")
    found = import_config(file, base_of(protocol))
    out.write_text(found.yaml(), "utf-8")
    for line in sorted(found.lines, key=lambda line: not line.acts):
        print(line)
    print(f"wrote {out}: avcl run {out}")
    for hint in found.hints:
        print(hint.replace("CONFIG", str(out)))


def _print_size(arguments: list[str] | None, as_json: bool) -> None:
    from avcl_core.config.load import read
    from avcl_core.running.preview import size_of_configuration, substitutes

    config, overrides = split_arguments(arguments or [])
    path = find_configuration(config or DEFAULT)
    added = substitutes(path, overrides)
    found = size_of_configuration(read(path, [*added, *overrides]))
    if as_json:
        print(json.dumps({**found.to_json(), "added": added}, indent=1))
        return
    for text in added:
        print(f"for measuring: {text}")
    for name, value in found.rows():
        print(f"{name}: {value}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation.

    Versions, devices, codecs, embedded weights, plug-ins, disk.
    """
    from avcl.doctor import checks

    found = checks()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _print_rows(found)
    if any(row["state"] == "broken" for row in found):
        raise typer.Exit(1)


def _source(arguments: list[str] | None):
    from avcl_core.config.load import read

    config, overrides = split_arguments(arguments or [])
    return read(find_configuration(config or DEFAULT), overrides)


def find_configuration(name: str) -> Path:
    """Return a configuration file, one that ships with AVCL, or one that ships with a task package."""
    from avcl_core.config.presets import find_config
    from avcl_core.errors import ConfigError
    from avcl_core.plugins import names

    try:
        return find_config(name, "avcl")
    except ConfigError:
        for task in names("task"):
            with suppress(ConfigError):
                return find_config(name, f"avcl_{task}")
        raise


def _finish(path: Path | None) -> None:
    """Write the report of a finished run and print its table; ranks other than the first have none."""
    if path is None:
        return
    from rich.console import Console

    from avcl.report import format_result_table, render
    from avcl_core.evaluation.record import RunRecord

    page = render([path])
    Console().print(format_result_table(RunRecord.load(path)))
    print(f"report {page}")


def _print_rows(rows: Iterable[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    if not rows:
        print("none")
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
