"""An imported checkpoint is a run: it evaluates, says where it comes from, is not trained on, and its native form is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import released_layout as layout
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from avcl.cli_weights import weights_app
from avcl_ave import plugin
from avcl_ave.authors import checkpoint
from avcl_avqa import ground_plugin
from avcl_avqa.authors import grounding
from avcl_core.config.load import read
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError, DataError, IntegrityError
from avcl_core.importing import importer
from avcl_core.importing.foreign import as_foreign
from avcl_core.importing.importer import Imported, import_run
from avcl_core.running.launch import Console, evaluate, resume, start
from avcl_core.running.origin import WARM
from avcl_core.running.provide import provide
from avcl_core.training.checkpoint import CheckpointStore
from shared_backbones import create
from shared_backbones.convert.archive import read_tensors

TOWERS: dict[str, Any] = {
    "visual": {"name": "swin_v2", "size": "tiny"},
    "audio": {"name": "htsat", "size": "tiny"},
}
RELEASED = layout.Released(skip=2, latents=8, reduction=4, norm=True, spelling="moe_")
WIDTH = 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configurations of the tiny size and a very small world."""
    folder = tmp_path_factory.mktemp("imports")
    common: dict[str, Any] = {
        "data": {"root": str(folder / "data"), "world": {"bank": "procedural", "scale": 0.02}},
        "towers": TOWERS,
        "method": {"name": "finetune"},
        "training": {"epochs": 1, "batch_size": 4, "selection": "last", "lr": 1.0e-3},
        "runs": str(folder / "runs"),
        "fabric": {"accelerator": "cpu"},
    }
    ave = {
        "stream": {"tasks": ["ave"]},
        "tasks": {"ave": {"width": WIDTH}},
        "model": {"name": "avmoe", "specaug": False},
    }
    ground = {"stream": {"tasks": ["avqa_ground"]}, "model": {"name": "frozen"}}
    (folder / "ave.yaml").write_text(yaml.safe_dump(common | ave))
    (folder / "ground.yaml").write_text(yaml.safe_dump(common | ground))
    return folder


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    ave, ground = replace(checkpoint(), config=str(place / "ave.yaml")), str(place / "ground.yaml")
    monkeypatch.setitem(plugin.published, "ave", lambda: ave)
    monkeypatch.setitem(ground_plugin.published, "grounding", lambda: replace(grounding(), config=ground))
    # A process for each file takes seconds; one test below uses it.
    monkeypatch.setattr(importer, "read_foreign", lambda file: as_foreign(file, read_tensors(file)))


@pytest.fixture(scope="module")
def tensors(place: Path) -> dict[str, torch.Tensor]:
    """An AVE checkpoint on the tiny towers, one of which has drifted, for the classes of the world."""
    options, parts = load_run(read(place / "ave.yaml"))
    classes = len(plugin.build(parts.tasks["ave"], provide(plugin, options.data, 64), "clean").labels)
    visual, audio = (create(TOWERS[name]["name"], size="tiny").net.state_dict() for name in ("visual", "audio"))
    audio["audio_encoder.batch_norm.running_mean"] = audio["audio_encoder.batch_norm.running_mean"] + 0.5
    shapes = layout.adapters(RELEASED, layout.TINY) | layout.ave_head(128, 128, WIDTH, classes)
    return layout.values(shapes) | layout.released_towers(visual, audio)


@pytest.fixture(scope="module")
def file(place: Path, tensors) -> Path:
    """As a Lightning-like file of a data-parallel model: nested, prefixed, with objects that are no tensors."""
    path = place / "best_82.18.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "options": Imported}, path)
    return path


@pytest.fixture(scope="module")
def run(place: Path, file: Path) -> Imported:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plugin.published, "ave", lambda: replace(checkpoint(), config=str(place / "ave.yaml")))
        return import_run(file, place / "imported", "ave")


def test_import_says_what_it_found(run: Imported, place: Path) -> None:
    assert {k: run.model[k] for k in ("skip", "latents", "reduction", "groups", "bottleneck_norm", "uni_attention")} == {
        "skip": 2, "latents": 8, "reduction": 4, "groups": 2, "bottleneck_norm": "batch", "uni_attention": "none",
    }  # fmt: skip
    config = yaml.safe_load((place / "imported" / "config.yaml").read_text())
    assert config["model"]["audio_placement"] == "after_block"
    assert config["model"]["imported"] is True
    assert run.gates == {"audio": True, "visual": True}
    assert "swin.head.weight" in run.dropped
    assert "temporal_attn.video_encoder.encoder_layer.linear1.weight" in run.dropped
    record = json.loads((place / "imported" / "run.json").read_text())
    assert record["imported"]["sha256"] == run.sha256
    assert len(run.sha256) == 64
    assert record["status"] == "imported"


def test_only_the_drifted_tower_gets_a_file(run: Imported, place: Path, tensors) -> None:
    assert run.towers["visual"] == {"weights": "as configured"}
    assert run.towers["audio"]["differing"] == ["audio_encoder.batch_norm.running_mean"]
    written = load_file(run.towers["audio"]["file"])
    assert torch.equal(written["audio_encoder.batch_norm.running_mean"], tensors["htsat.bn0.running_mean"])
    config = yaml.safe_load((place / "imported" / "config.yaml").read_text())
    assert config["towers"]["audio"]["checkpoint"] == run.towers["audio"]["file"]
    assert config["towers"]["visual"]["checkpoint"] is None


def test_imported_run_evaluates(run: Imported, place: Path, tensors) -> None:
    found = evaluate(Path(run.run), None, Console())
    assert found["ave"].agrees
    assert 0 <= found["ave"].evaluation.metrics["accuracy"] <= 100
    held = CheckpointStore(place / "imported" / "checkpoints").load().trained
    assert torch.equal(held["heads.ave.event.weight"], tensors["CMBS.localize_module.event_classifier.weight"])


def test_imported_run_is_not_trained_on(run: Imported) -> None:
    with pytest.raises(IntegrityError, match="--to-native"):
        resume(Path(run.run), (), Console())


def test_report_of_an_imported_run_names_its_origin(run: Imported, tmp_path: Path) -> None:
    from avcl.report import render

    page = render([Path(run.run)], tmp_path / "report.html").read_text()
    assert WARM in page
    assert "best_82.18.pt" in page


def test_native_form_is_trained_on(place: Path, file: Path, tmp_path: Path) -> None:
    done = import_run(file, tmp_path / "native", "ave", to_native=True)
    assert done.model["audio_placement"] == "sublayers"
    assert not done.model["imported"]
    assert any("a different model" in line for line in done.notes)
    before = CheckpointStore(tmp_path / "native" / "checkpoints").load().trained
    resume(tmp_path / "native", (), Console())
    record = json.loads((tmp_path / "native" / "run.json").read_text())
    assert record["status"] == "done"
    after = CheckpointStore(tmp_path / "native" / "checkpoints").load().trained
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_head_of_another_method_starts_a_run_and_is_told(place: Path, tensors, tmp_path: Path) -> None:
    """DG-SCT's file: its adapters are left out, its head starts a run, and two runs later the report still says so."""
    other = {k: v for k, v in tensors.items() if not layout.re.match("(audio|vis)_", k)}
    other |= {"audio_adapter_blocks_p1.0.down_sampler.weight": torch.zeros(4, 8, 1, 1)}
    torch.save(other, tmp_path / "dgsct.pt")
    done = import_run(tmp_path / "dgsct.pt", tmp_path / "head", "ave")
    assert done.model == {"name": "frozen", "unnormed": ["audio"]}
    assert "audio_adapter_blocks_p1.0.down_sampler.weight" in done.dropped
    source = tmp_path / "head"
    for _ in range(2):
        path = start(read(place / "ave.yaml", ["model.name=frozen", f"init.ave={source}"]), ["test"], Console())
        assert path is not None
        record = json.loads((path / "run.json").read_text())
        assert any(WARM in note and "dgsct.pt" in note for note in record["notes"])
        source = path


def test_grounding_file_starts_the_answer_head(place: Path, tmp_path: Path) -> None:
    from avcl_core.running.initial import head_tensors

    given = layout.values(layout.grounding_head(128, 128))
    torch.save({f"module.{name}": tensor for name, tensor in given.items()}, tmp_path / "grounding.pt")
    done = import_run(tmp_path / "grounding.pt", tmp_path / "run", "grounding")
    assert "as configured" in done.towers["visual"]["weights"]
    head = head_tensors(tmp_path / "run", "avqa")
    assert len(head) == 14
    assert torch.equal(head["grounding.match_layers.3.bias"], given["fc4.bias"])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["test_selected"] == {}


def test_command_line(place: Path, file: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    arguments = ["convert", "--from", "avmoe", str(file), str(tmp_path / "run"), "--task", "ave", "seed=3"]
    done = runner.invoke(weights_app, arguments, catch_exceptions=False)
    assert json.loads(done.output[done.output.index("{") :])["model"]["skip"] == 2
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "avmoes", "--task", "ave"], "avmoe"),
        (["--from", "avmoe"], "avs_ms3"),
        (["--from", "avmoe", "--task", "avs"], "avs_s4"),
        (["--from", "avmoe", "--task", "ave", "model.skip=1"], "model.skip=1"),
        (["--from", "avmoe", "--task", "ave", "--as", "x"], "--as"),
        (["--task", "ave"], "--task"),
        (["--to-native"], "--to-native"),
        (["data.root"], "KEY=VALUE"),
    ],
)
def test_command_line_refuses(file: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        CliRunner().invoke(
            weights_app, ["convert", str(file), str(tmp_path / "run"), *arguments], catch_exceptions=False
        )
    assert not (tmp_path / "run").exists()


def test_refused_import_leaves_nothing(place: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not empty"):
        import_run(file, tmp_path / "full", "ave")
    with pytest.raises(DataError, match="no prepared data"):
        import_run(file, tmp_path / "run", "ave", [f"data.root={tmp_path}", "data.world=null"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(IntegrityError, match="no such file"):
        import_run(tmp_path / "nothing.pt", tmp_path / "run", "ave")
    with pytest.raises(ConfigError, match=r"stream\.tasks"):
        import_run(file, tmp_path / "run", "ave", ["stream.tasks=[ave, avvp]"])
    with pytest.raises(IntegrityError, match=r"towers\.visual\.name"):
        import_run(file, tmp_path / "run", "ave", ["towers.visual.name=clip_vit"])
