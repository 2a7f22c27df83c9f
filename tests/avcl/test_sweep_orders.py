"""Orders of a plan: which runs they are, what is drawn, and what the tables say of them by hand."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

import pytest

from avcl.sweep import overview, show_table
from avcl.sweep_orders import orders_of
from avcl.sweep_plan import Planned, Sweep, load_sweep
from avcl.sweep_stream import EVERY, ONE, stream_tables
from avcl.sweep_table import write_tables
from avcl_core.errors import ConfigError

from .sweep_runs import write_stream_run

PLAN = """title: orders
configs: [runs/embedded]
orders:
  there: [ave, avs]
  back: [avs, ave]
variants:
  replay: []
  plain: [method.name=finetune]
  alone: [method.name=single]
  all at once: [method.name=joint]
seeds: [0, 1]
"""
IDEALS = {"avs": 1.0}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.chdir(tmp_path)
    return load(PLAN)


def load(text: str) -> Sweep:
    Path("toy.yaml").write_text(text)
    return load_sweep(Path("toy.yaml"))


def results(run: Planned, kept: float, ideals: dict[str, float]) -> dict[tuple[str, str], float]:
    """Scores 60 + seed of what is learnt (40 + seed for avs), ``kept`` of it at the end."""
    first, second = run.options.stream.tasks
    score = {"ave": 60.0 + run.seed, "avs": (40.0 + run.seed) * ideals.get("avs", 100.0) / 100.0}
    method = run.options.method["name"]
    if method == "single":
        return {(first, first): score[first], (second, second): score[second]}
    last = {(second, first): score[first] * kept, (second, second): score[second]}
    return last if method == "joint" else {(first, first): score[first], **last}


KEPT = {"replay": {"there": 0.9, "back": 0.8}, "plain": {"there": 0.5, "back": 0.75}}


def write_all(sweep: Sweep, ideals: dict[str, float]) -> None:
    for run in sweep.todo:
        kept = KEPT.get(run.variant, {}).get(run.order, 1.0)
        write_stream_run(run, results(run, kept, ideals), ideals)


def test_random_orders_are_different_and_follow_from_the_seed_alone() -> None:
    tasks = ("ave", "avvp", "avs", "avqa")
    drawn = orders_of({"listed": tasks, "random": 5}, tasks, 0, "here")
    assert list(drawn) == ["listed", *(f"random {n}" for n in range(1, 6))]
    assert len(set(drawn.values())) == 6
    assert {tuple(sorted(order)) for order in drawn.values()} == {tuple(sorted(tasks))}
    assert orders_of({"random": 5}, tasks[::-1], 0, "here")["random 1"] == drawn["random 1"], "names, not places"
    assert orders_of({"listed": tasks, "random": 3}, tasks, 0, "here") == dict(list(drawn.items())[:4])
    assert orders_of({"listed": tasks, "random": 5}, tasks, 1, "here") != drawn
    assert drawn["random 1"] == FIRST
    three = orders_of({"mine": ("b", "a", "c"), "random": 5}, (), 3, "here")
    assert len(set(three.values())) == 6, "all there are"
    assert three["mine"] == ("b", "a", "c")


FIRST = ("avs", "avqa", "ave", "avvp")


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ("{one: [ave, avs], two: [ave, avs]}", "'one' and 'two' are the same"),
        ("{one: [ave, avs], two: [avs, avvp]}", "'one' and 'two' hold different tasks"),
        ("{one: [ave, ave]}", "order 'one' names a task twice: ave, ave"),
        ("{one: [ave, avs], random: 2}", "2 random orders: 2 tasks have 2, of which 1 are listed"),
        ("{three: 3}", "'three': expected a list of tasks; a number of orders to draw is called random"),
        ("{random 1: [ave, avs]}", "'random 1': this name is for orders that are drawn"),
        ("{one: [ave, avz]}", "task 'avz' is not installed"),
    ],
)
def test_wrong_orders_are_refused_with_their_place(sweep: Sweep, orders: str, message: str) -> None:
    text = re.sub(r"orders:\n.*?variants", f"orders: {orders}\nvariants", PLAN, flags=re.S)
    with pytest.raises(ConfigError, match=rf"toy\.yaml:\d+: .*{re.escape(message)}"):
        load(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("stream.tasks=[ave]", "'stream.tasks=[ave]': a plan sets stream.tasks itself; use orders"),
        ("stream.name=x", "a plan sets stream.name itself; use orders"),
        ("references=[single]", "a plan sets references itself; use variants with method.name=single"),
    ],
)
def test_what_orders_set_nobody_else_sets(sweep: Sweep, given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_sweep(Path("toy.yaml"), [given])
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(PLAN.replace("replay: []", f'replay: ["{given}"]'))


def test_orders_times_variants_times_seeds_but_references_once(sweep: Sweep) -> None:
    assert [(run.order, run.variant, run.seed) for run in sweep.runs] == [
        (order, variant, seed)
        for order in ("there", "back")
        for variant in ("replay", "plain", "alone", "all at once")
        for seed in (0, 1)
    ]
    tasks = {(run.order, run.variant): run.options.stream.tasks for run in sweep.runs}
    assert tasks["there", "plain"] == ("ave", "avs")
    assert tasks["back", "plain"] == ("avs", "ave")
    assert tasks["back", "alone"] == tasks["back", "all at once"] == ("ave", "avs"), "no sequence is learnt"
    assert len(sweep.todo) == 12
    names = {run.options.stream.title for run in sweep.runs}
    assert names == {"ave-avs", "avs-ave"}
    assert sweep.runs[8].title == "runs/embedded · back · replay · seed 0"
    rows = overview(sweep, sweep.find())
    assert rows[0]["order"] == "there"
    assert rows[12]["state"] == "same run as there, alone"


def test_a_named_stream_and_its_references_are_the_plans(sweep: Sweep) -> None:
    Path("named.yaml").write_text(
        "stream: {name: mine, tasks: [ave, avs]}\nreferences: [single, joint]\nmethod: {name: finetune}\n"
    )
    sweep = load(PLAN.replace("runs/embedded", "named.yaml"))
    assert {run.options.stream.title for run in sweep.runs} == {"ave-avs", "avs-ave"}
    assert {run.options.references for run in sweep.runs} == {()}
    assert "references=[]" in sweep.runs[0].overrides
    plain = load(re.sub(r"orders:\n.*?variants", "variants", PLAN, flags=re.S))
    assert not any("references" in text for text in plain.runs[0].overrides), "commands say no more than they have to"


def test_tables_by_hand(sweep: Sweep) -> None:
    write_all(sweep, IDEALS)
    (stream,) = stream_tables(sweep, sweep.find())
    tables = {table.title: table for table in stream.tables}
    assert list(tables) == [
        "Final score",
        "Difference to replay",
        "Forgetting",
        "Retention",
        "Share of alone",
        "Share of all at once",
    ]
    lines = {(line.variant, line.order): line for line in tables["Final score"].lines}
    assert list(lines) == [
        *(("replay", order) for order in ("there", "back", EVERY)),
        *(("plain", order) for order in ("there", "back", EVERY)),
        ("alone", ONE),
        ("all at once", ONE),
    ]
    assert [test.name for test in stream.tests] == ["ave", "avs"]
    ave, avs = lines["replay", "there"].cells
    assert ave.values == (54.0, 54.9)
    assert avs.values == (0.40, 0.41)
    ave, avs = lines["replay", "back"].cells
    assert ave.values == (60.0, 61.0)
    assert avs.mean == pytest.approx(0.8 * 0.405)
    over = lines["replay", EVERY]
    assert (over.n, lines["alone", ONE].n) == (2, 2)
    assert over.cells[0].mean == pytest.approx((54.45 + 60.5) / 2)
    assert over.cells[0].std == pytest.approx(statistics.stdev([54.45, 60.5])), "over orders, not over runs"
    drop = {(line.variant, line.order): line for line in tables["Forgetting"].lines}
    assert set(drop) == {(v, o) for v in ("replay", "plain") for o in ("there", "back", EVERY)}
    assert drop["plain", "there"].cells[0].mean == pytest.approx(0.5 * 60.5)
    assert drop["plain", "there"].cells[1].mean is None, "learnt last"
    assert drop["plain", "back"].cells[1].mean == pytest.approx(0.25 * 0.405)
    kept = {(line.variant, line.order): line for line in tables["Retention"].lines}
    assert tables["Retention"].columns == ("ave", "avs", "mean")
    assert [kept["replay", "back"].cells[n].mean for n in (1, 2)] == pytest.approx([0.8, 0.8])
    gaps = {(line.variant, line.order): line for line in tables["Difference to replay"].lines}
    assert gaps["plain", "there"].cells[0].values == pytest.approx((-24.0, -24.4))
    assert ("replay", "there") not in gaps
    share = {(line.variant, line.order): line for line in tables["Share of alone"].lines}
    assert set(share) == set(drop), "references have no share of each other"
    assert [cell.mean for cell in share["plain", "back"].cells] == pytest.approx([1.0, 0.75, 0.875])
    assert stream.reasons[0].startswith("FM, BWT, LA and A_T average over test sets")


def test_plain_means_only_where_the_plan_asks_for_them(sweep: Sweep) -> None:
    write_all(sweep, IDEALS)
    text = write_tables(sweep, sweep.find())
    assert "Plain means" not in text
    sweep = load(PLAN + "plain_mean: true\n")
    text = write_tables(sweep, sweep.find())
    assert "### Plain means over the stream, in percent" in text
    (stream,) = stream_tables(sweep, sweep.find())
    table = stream.tables[-1]
    cells = dict(zip(table.columns, next(x for x in table.lines if x.variant == "plain").cells, strict=True))
    assert cells["A_T"].values == pytest.approx(((30 + 40) / 2, (30.5 + 41) / 2))
    assert cells["FM"].values == pytest.approx((30, 30.5))
    assert cells["BWT"].values == pytest.approx((-30, -30.5))
    assert cells["LA"].values == pytest.approx(((60 + 40) / 2, (61 + 41) / 2))
    assert stream.reasons == ()


def test_one_metric_is_averaged_and_called_so(sweep: Sweep) -> None:
    write_all(sweep, {})
    (stream,) = stream_tables(sweep, sweep.find())
    table = stream.tables[-1]
    assert table.title == "Over the stream"
    joint = next(line for line in table.lines if line.variant == "all at once")
    cells = dict(zip(table.columns, joint.cells, strict=True))
    assert cells["A_T"].values == pytest.approx((50.0, 51.0))
    assert cells["FM"].mean is None


def test_markdown_json_and_page_say_the_same(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    write_all(sweep, IDEALS)
    show_table(sweep)
    text = (sweep.folder / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "orders 2, variants 4, seeds 2; 12 of 12 runs done." in text
    assert "* back: avs → ave" in text
    assert "| replay | all orders | 2 | 57.48 ± 4.28 |" in text
    assert "| plain | there | 2 | −24.20 ± 0.28 |" in text
    assert "| *best control* |  |  | 5.00 chance | 0.0500 chance |" in text
    record = json.loads((sweep.folder / "table.json").read_text())
    rows = record["streams"][0]["tables"][0]["rows"]
    assert rows[2]["order"] == EVERY
    assert rows[2]["cells"][0]["values"] == pytest.approx([54.45, 60.5])
    assert record["runs"][-1]["order"] == "back"
    page = (sweep.folder / "report.html").read_text()
    assert "57.48 ± 4.28" in page
    assert "What the order changes" in page
    assert page.count("<svg") >= 5
    figure = page.split("What the order changes")[1].split("</svg>")[0]
    for name in ("there", "back", "any order", "replay", "all at once"):
        assert f">{name}<" in figure


def test_a_plan_under_way_has_tables_of_what_is_done(sweep: Sweep) -> None:
    assert stream_tables(sweep, sweep.find()) == []
    run = sweep.todo[0]
    write_stream_run(run, results(run, 0.9, IDEALS), IDEALS)
    text = write_tables(sweep, sweep.find())
    assert "| replay | there | 1 | 54.00 | 0.4000 |" in text
    assert "all orders" not in text.split("## Runs that are missing")[0].split("### Final")[1]
    assert "* runs/embedded · back · plain · seed 1: to run" in text


def test_several_tasks_without_orders_get_the_same_tables(sweep: Sweep) -> None:
    Path("two.yaml").write_text("stream: {tasks: [ave, avs]}\n")
    text = re.sub(r"orders:\n.*?variants", "variants", PLAN, flags=re.S)
    plain = load(text.replace("runs/embedded", "two.yaml"))
    for run in plain.todo:
        write_stream_run(run, results(run, KEPT.get(run.variant, {}).get("there", 1.0), IDEALS), IDEALS)
    text = write_tables(plain, plain.find())
    assert "### Forgetting" in text
    assert "| plain | 2 | 30.25 ± 0.35 | – |" in text
    assert "## two.yaml: ave" in text, "and one table per test set, as ever"
