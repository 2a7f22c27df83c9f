"""A plan is what its file says: all runs in order, each a valid configuration, matched with what there is of it on disk."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from avcl.sweep_jobs import command_of
from avcl.sweep_plan import Found, find_plan, load_sweep
from avcl_core.config.load import read
from avcl_core.config.presets import find_config, preset_folder
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError

from .sweep_runs import write_run

PLAN = """title: toy
configs: [ave/ave_avmoe_embedded]
variants:
  avmoe: []
  uniform router: [model.router=uniform, model.router_noise=0, model.balance_weight=0]
  frozen towers: [model.name=frozen, "model.unnormed=[audio]"]
seeds: [0, 1]
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(PLAN)
    return path


def states(sweep) -> list[str]:
    found = sweep.find()
    return [found[run].state for run in sweep.runs]


def test_a_plan_is_all_its_runs_in_order(plan: Path) -> None:
    plan.write_text(
        PLAN.replace("[ave/ave_avmoe_embedded]", "[ave/ave_avmoe_embedded, runs/embedded]").split("  uni")[0]
    )
    plan.write_text(
        plan.read_text() + "  finetune: [method.name=finetune]\nseeds: [3, 1]\noverrides: [training.epochs=1]\n"
    )
    sweep = load_sweep(plan, ["workers=2"])
    assert [(run.config, run.variant, run.seed) for run in sweep.runs] == [
        (config, variant, seed)
        for config in ("ave/ave_avmoe_embedded", "runs/embedded")
        for variant in ("avmoe", "finetune")
        for seed in (3, 1)
    ]
    for run in sweep.runs:
        assert (run.options.seed, run.options.training.epochs, run.options.workers) == (run.seed, 1, 2)
        assert run.options == load_run(read(run.path, run.overrides))[0], "the command says everything"
    assert sweep.runs[-1].options.method == {"name": "finetune"}
    assert sweep.folder == Path("runs/toy")
    assert [run.seed for run in load_sweep(plan, seeds=[7]).runs] == [7] * 4


def test_another_component_takes_no_options_of_the_one_it_replaces(plan: Path) -> None:
    sweep = load_sweep(plan, ["model.latents=4", "training.lr=0.1"])
    by_variant = {run.variant: run.options for run in sweep.runs}
    assert by_variant["avmoe"].model["latents"] == by_variant["uniform router"].model["latents"] == 4
    assert by_variant["avmoe"].model["skip"] == 2
    assert by_variant["uniform router"].model["router"] == "uniform"
    assert by_variant["frozen towers"].model == {"name": "frozen", "unnormed": ["audio"]}
    assert {options.training.lr for options in by_variant.values()} == {0.1}
    plan.write_text(PLAN.replace('[model.name=frozen, "model.unnormed=[audio]"]', "[model.name=avmoe, model.skip=1]"))
    same = load_sweep(plan, ["model.latents=4"]).runs[-1].options
    assert (same.model["latents"], same.model["skip"]) == (4, 1), "the name that it has already replaces nothing"


def test_variants_with_the_same_configuration_share_a_run(plan: Path) -> None:
    plan.write_text(PLAN.replace("seeds:", "  two stages: [model.skip=2]\nseeds:"))
    sweep = load_sweep(plan)
    labels = {run.variant: run.label for run in sweep.runs}
    assert labels == {**{name: name for name in labels}, "two stages": "avmoe"}
    assert [(run.variant, run.seed) for run in sweep.todo] == [
        (name, seed) for name in ("avmoe", "uniform router", "frozen towers") for seed in (0, 1)
    ]
    folder = write_run(sweep.todo[1])
    found = sweep.find()
    assert {run.variant: found[run].folder for run in sweep.runs if run.seed == 1} == {
        "avmoe": folder,
        "two stages": folder,
        "uniform router": None,
        "frozen towers": None,
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: toy", "tittle: toy", r"toy\.yaml:1: tittle: unknown key; did you mean 'title'\?"),
        ("title: toy\n", "title: toy\nvariant: {}\n", r"toy\.yaml:2: variant: unknown key; did you mean 'variants'\?"),
        (
            "ave/ave_avmoe_embedded",
            "ave/ave_avmo",
            r"toy\.yaml:2: configs: 'ave/ave_avmo'.*did you mean 'ave/ave_avmoe'",
        ),
        ("ave/ave_avmoe_embedded", "sweeps/avmoe", r"toy\.yaml:2: configs: 'sweeps/avmoe': no such file"),
        (
            "router=uni",
            "ruoter=uni",
            r"toy\.yaml:5: .*variant 'uniform router': override 'model\.ruoter.*mean 'router'",
        ),
        ("router=uniform", "router=unifrom", r"toy\.yaml:5: .*'uniform router'.*found 'unifrom'"),
        ("name=frozen", "name=frozn", r"toy\.yaml:6: .*'frozen towers'.*model 'frozn' is not installed.*'frozen'"),
        ("[model.name=frozen,", "[frozen,", r"toy\.yaml:6: .*override 'frozen': expected key=value"),
        ("seeds: [0, 1]", "seeds: [0, 0]", r"toy\.yaml:7: seeds: .*0 is there twice"),
        ("seeds: [0, 1]", "seeds: []", r"toy\.yaml:7: seeds: "),
        ("seeds: [0, 1]", "seeds: [-1]", r"toy\.yaml:7: seeds\.0: found -1"),
        ("avmoe: []", "avmoe: [seed=3]", r"toy\.yaml:4: variants\.avmoe: 'seed=3': a plan sets seed itself; use seeds"),
        ("avmoe: []", "avmoe: [runs=x]", r"toy\.yaml:4: variants\.avmoe: 'runs=x': .*put it in overrides"),
        ("seeds: [0, 1]", "seeds: [0]\noverrides: [label=x]", r"toy\.yaml:8: overrides: 'label=x'.*use variants"),
        (
            "avmoe: []",
            "avmoe: [stream.protocol=paper]",
            r"differ in stream\.protocol: paper \(.*avmoe\), clean \(.*uniform",
        ),
    ],
)
def test_errors_name_place_and_nearest(plan: Path, old: str, new: str, message: str) -> None:
    assert old in PLAN
    plan.write_text(PLAN.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_sweep(plan)


def test_the_command_line_cannot_set_what_the_plan_sets(plan: Path) -> None:
    for text in ("seed=3", "label=x"):
        with pytest.raises(ConfigError, match=rf"sweep: '{text}': a plan sets {text.partition('=')[0]} itself"):
            load_sweep(plan, [text])


def test_what_is_done_is_found_by_label_configuration_and_places(plan: Path) -> None:
    sweep = load_sweep(plan)
    assert states(sweep) == ["to run"] * 6
    first = sweep.runs[0]
    folder = write_run(first)
    assert states(sweep) == ["done"] + ["to run"] * 5
    assert states(load_sweep(plan, ["workers=3", "training.checkpoint_every=7"]))[0] == "done", (
        "results do not depend on it"
    )
    for other in (["training.epochs=2"], ["data.root=elsewhere"], ["data.world.scale=0.5"]):
        assert states(load_sweep(plan, other)) == ["to run"] * 6, other
    plan.write_text(PLAN.replace("  avmoe: []", "  plain: []"))
    assert states(load_sweep(plan)) == ["to run"] * 6, "another label"
    plan.write_text(PLAN)
    for status, state in {"running": "stopped", "stopped": "stopped", "failed": "failed"}.items():
        write_run(sweep.runs[1], status=status, name="one")
        found = sweep.find()[sweep.runs[1]]
        assert (found.state, found.folder and found.folder.name) == (state, f"{first.path.stem}-one")
        shutil.rmtree(found.folder)
    write_run(first, status="stopped", name="zz-newer")
    assert sweep.find()[first] == Found("done", folder), "what is done comes before what is newer"
    (folder / "run.json").write_text("{")
    assert sweep.find()[first].state == "stopped", "a damaged record is no run"


def test_a_run_is_matched_from_another_folder_only_with_the_same_data(plan: Path, tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    sweep = load_sweep(plan, [f"runs={runs}", "data.root=data"])
    write_run(sweep.runs[0])
    other = tmp_path / "other"
    other.mkdir()
    os.chdir(other)
    assert states(load_sweep(plan, [f"runs={runs}", f"data.root={data}"]))[0] == "done"
    assert states(load_sweep(plan, [f"runs={runs}", "data.root=data"]))[0] == "to run"


def test_commands_start_and_resume(plan: Path) -> None:
    run = load_sweep(plan, ["workers=2"]).runs[4]
    start = command_of(run, Found("to run"))
    assert start[0] == "run"
    assert Path(start[1]) == find_config("ave_avmoe_embedded", "avcl_ave")
    assert start[-2:] == ["seed=0", 'label="frozen towers"']
    assert command_of(run, Found("failed", Path("a/b"))) == ["resume", "a/b", "workers=2"]


@pytest.mark.parametrize("label", ["1", "a: b", "true", 'with "quotes"', "ünï"])
def test_any_label_survives_the_command_line(plan: Path, label: str) -> None:
    plan.write_text(yaml.safe_dump({**yaml.safe_load(PLAN), "variants": {label: []}}, allow_unicode=True))
    (run, _) = load_sweep(plan).runs
    assert load_run(read(run.path, run.overrides))[0].label == label


def test_a_label_is_not_in_the_digest() -> None:
    path = find_config("embedded", "avcl")
    plain, labelled = (load_run(read(path, given))[0] for given in ([], ["label=x"]))
    assert (plain.label, labelled.label) == (None, "x")
    assert plain.digest == labelled.digest
    assert plain.digest != load_run(read(path, ["seed=1"]))[0].digest


def test_a_name_means_a_plan_for_sweeps_and_a_run_for_runs() -> None:
    folder = preset_folder("avcl")
    assert find_config("avmoe", "avcl") == folder / "runs" / "avmoe.yaml"
    assert find_plan("avmoe") == folder / "sweeps" / "avmoe.yaml"
    assert find_plan("embedded") == folder / "runs" / "embedded.yaml"


def test_shipped_plans_are_valid() -> None:
    folders = ["data.world.images=mnist", "data.world.sounds=fsdd"]
    found = {
        name: load_sweep(find_plan(name), folders if name == "avmoe_digits" else [])
        for name in ("avmoe", "avmoe_avqa", "avmoe_digits", "avmoe_ablations")
    }
    assert {name: (len(sweep.runs), len(sweep.plan.configs)) for name, sweep in found.items()} == {
        "avmoe": (48, 4),
        "avmoe_avqa": (12, 1),
        "avmoe_digits": (36, 3),
        "avmoe_ablations": (120, 5),
    }
    for name in ("avmoe", "avmoe_avqa", "avmoe_digits"):
        for run in found[name].runs:
            assert run.label == run.variant, "every control is another model"
            if run.variant == "frozen towers":
                assert run.options.model == {"name": "frozen", "unnormed": ["audio"]}
    numbers = {
        (run.options.model["cross_experts"], run.options.model["uni_experts"]) for run in found["avmoe_ablations"].runs
    }
    assert numbers == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert json.dumps(found["avmoe"].runs[0].options.model).count("avmoe") == 1
