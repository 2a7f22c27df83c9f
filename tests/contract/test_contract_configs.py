"""Every configuration that ships is valid, down to the options of its plug-ins; data and weight files need not be there."""

from pathlib import Path

import pytest

from avcl.sweep_plan import load_sweep
from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError
from avcl_core.plugins import load

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(
    path
    for path in (*ROOT.glob("packages/*/configs/*.yaml"), *ROOT.glob("configs/*/*.yaml"))
    if path.parent.name != "sweeps"  # plans are no runs; tests/avcl/test_sweep_plans.py has them
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_shipped_configuration(path):
    folders = ["data.world.images=MNIST", "data.world.sounds=FSDD"] if "digits" in path.stem else []
    options, parts = load_run(read(path, folders))
    assert set(parts.tasks) == set(options.stream.tasks)


PHP_STREAMS = {
    "php": ("ave", "avvp", "avs", "avqa"),
    "php_reversed": ("avqa", "avs", "avvp", "ave"),
    "php_ave_avvp_avqa": ("ave", "avvp", "avqa"),
    "php_ave_avqa_avvp": ("ave", "avqa", "avvp"),
    "php_paper": ("ave", "avvp", "avs", "avqa"),
}


@pytest.mark.parametrize("name", PHP_STREAMS)
def test_php_as_published(name):
    """Streams of php.md 1.2 and 2.1 with the model of 3 and the optimisation of 4.3."""
    options, parts = load_run(read(find_config(name, "avcl")))
    paper = name == "php_paper"
    assert options.stream.tasks == PHP_STREAMS[name]
    assert (options.stream.protocol, options.training.selection) == (("paper", "last") if paper else ("clean", "best"))
    assert parts.tasks["avvp"].evaluation == ("video_level" if paper else "parsing")
    assert parts.tasks["avqa"].annotations == "original"
    # The defaults of the model are the published sizes.
    assert parts.model == load("model", "php").Config()
    training = options.training
    assert (training.epochs, training.batch_size, training.micro_batch, training.lr) == (10, 2, None, 3e-4)
    assert (training.optimizer, training.weight_decay, training.clip, training.warmup) == ("adam", 1e-5, 0.5, 0)
    assert (training.schedule, training.schedule_by, training.lr_min) == ("cosine", "epoch", 1e-6)
    assert not training.tasks
    assert {n: (t.name, t.size, t.variant, t.tile) for n, t in options.towers.items()} == {
        "visual": ("clip_vit", "full", "b32", 1),
        "audio": ("clap", "full", None, 10),
    }


@pytest.mark.parametrize(
    ("task", "name"), [("ave", "ave_php"), ("avvp", "avvp_php"), ("avs", "avs_s4_php"), ("avqa", "avqa_php")]
)
def test_a_task_alone_has_the_model_and_recipe_of_php_s_stream(task, name):
    """The upper bound of a stream is the same model, head, towers and data by itself (php.md 1.2, item 2)."""
    stream, whole = load_run(read(find_config("php", "avcl")))
    options, parts = load_run(read(find_config(name, f"avcl_{task}")))
    assert (options.stream.tasks, parts.tasks[task], parts.model) == ((task,), whole.tasks[task], whole.model)
    for part in ("data", "towers", "method", "training"):
        assert getattr(options, part) == getattr(stream, part), part
    # On the embedded world only the sizes must be the same; how long a task trains there is its own matter.
    stream, whole = load_run(read(find_config("php_embedded", "avcl")))
    options, parts = load_run(read(find_config(f"{name}_embedded", f"avcl_{task}")))
    # A task without class texts has no contrastive term, so its file has no weights for it.
    expected = whole.model
    if task in ("avs", "avqa"):
        assert "contrast" not in parts.model.model_fields_set
        assert "context" not in parts.model.model_fields_set
        expected = expected.model_copy(update={"contrast": parts.model.contrast})
    assert (options.stream.tasks, parts.model, options.towers) == ((task,), expected, stream.towers)
    ours, theirs = parts.tasks[task], whole.tasks[task]
    assert ours.head == theirs.head
    assert task != "avs" or ours == theirs


def test_ablations_of_php_are_different_models_or_learn_at_other_rates():
    """Every variant of the plan is a valid configuration of its own, none by accident that of another."""
    sweep = load_sweep(find_config("php_ablations", "avcl", "sweeps"), seeds=[0])
    assert len(sweep.todo) == len(sweep.runs) == len(sweep.plan.variants)
    loaded = [load_run(read(run.path, run.overrides)) for run in sweep.runs]
    trained = [(parts.model, options.training.rates) for options, parts in loaded]
    assert all(a != b for i, a in enumerate(trained) for b in trained[:i])


@pytest.mark.parametrize("policy", ["snapshot", "ema"])
def test_a_method_that_must_know_the_task_is_refused_with_the_configuration(policy):
    given = ["method.name=finetune", f"method.shared={policy}"]
    load_run(read(find_config("embedded", "avcl"), given))
    hidden = "stream.task_id=hidden"
    with pytest.raises(ConfigError, match=rf"{hidden}.*method\.shared={policy} must know the task.*task_id=given"):
        load_run(read(find_config("embedded", "avcl"), [*given, hidden]))
    load_run(read(find_config("embedded", "avcl"), ["method.name=finetune", "method.shared=l2sp", hidden]))
    load_run(read(find_config("embedded", "avcl"), [hidden]))


def test_help_says_what_runs_without_a_configuration():
    from typer.testing import CliRunner

    from avcl.cli import app

    assert load_run(read(find_config("php_embedded", "avcl")))[0].references == ("single", "joint")
    text = " ".join(CliRunner().invoke(app, ["run", "--help"]).output.replace("│", " ").split())
    assert "three runs" in text
    assert "references=[] leaves" in text
