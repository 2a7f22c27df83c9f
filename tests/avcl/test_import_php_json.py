"""The authors' JSON configuration becomes ours: what acts is carried over, what does not is named, what cannot be is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from avcl.cli import main
from avcl.php_json.imported import base_of, import_config
from avcl_core.config.load import read
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError

ACTING: dict[str, Any] = {
    "prefix": "ave_llp_avqa",
    "model_name": "AVLearner",
    "train": 1,
    "seed": [1999],
    "device": ["0"],
    "is_task_incremental": 1,
    "task_order": ["AVE", "LLP", "AVQA"],
    "ViT": "ViT-B/32",
    "embed_dim": 768,
    "use_shallow_adapter": 1,
    "use_mid_prompt": 1,
    "use_deep_prompt": 1,
    "s_prompt_layer_idx": [0, 1],
    "m_prompt_layer_idx": [3, 4],
    "d_prompt_layer_idx": [5, 6, 7, 8, 9, 10, 11],
    "d_prompt_length": 10,
    "pool_size": 3,
    "top_k": 1,
    "prompt_pool": 1,
    "prompt_key": 1,
    "embedding_key": "mean",
    "prompt_init": "uniform",
    "prompt_key_init": "uniform",
    "use_prefix_tune_for_d_prompt": 1,
    "same_key_value": 0,
    "num_tokens": 32,
    "num_conv_group": 2,
    "is_bn": 0,
    "is_before_layernorm": 1,
    "is_post_layernorm": 1,
    "is_multimodal": 1,
    "alpha": 0.2,
    "beta": 0.05,
    "gamma": 0.01,
    "N_CTX": 4,
    "CTX_INIT": "a photo of a",
    "class_token_position": "end",
    "fine_tune": 0,
    "init_lr": 3e-4,
    "init_epoch": 10,
    "batch_size": 2,
    "num_workers": 16,
}
"""Appendix A of php.md: keys that act, with the values of the file that the authors ship."""
NO_COUNTERPART: dict[str, Any] = {"domain_order": 0, "batchwise_prompt": 1, "is_gate": 0}
UNUSED: dict[str, Any] = {
    "shuffle": True,
    "init_cls": 1,
    "increment": 1,
    "net_type": "ViT",
    "data_path": "/data",
    "memory_size": 0,
    "memory_per_class": 0,
    "memory_of_nobody": None,
    "fixed_memory": False,
    "class_order": [*range(99)],
}
WITHOUT_EFFECT: dict[str, Any] = {
    "prompt_length": 10,
    "audio_prompt_length": 20,
    "middle_adapter_layers": 4,
    "lrate": 3e-4,
    "epochs": 1,
    "lrate_decay": 0.1,
    "init_lr_decay": 0.1,
}
NEVER_READ: dict[str, Any] = {
    "description": "nothing\nat all",
    "use_prefix_tune_for_e_prompt": 1,
    "use_p_prompt": 0,
    "d_prompt_init": "zero",
    "audio_embed_dim": 1,
    "total_sessions": 3,
    "is_open_text": 0,
    "weak": 0,
    "is_audio_adapter_p1": 0,
    "is_audio_adapter_p2": 1,
    "is_audio_adapter_p3": 0,
    "Adapter_downsample": 16,
    "milestones": [4, 8],
    "multiclass": 0,
    "weight_decay": 2e-4,
}
DEAD = {**NO_COUNTERPART, **UNUSED, **WITHOUT_EFFECT, **NEVER_READ}
SHIPPED = {**NEVER_READ, **ACTING, **DEAD}


def write(folder: Path, given: Mapping[str, Any] | str, name: str = "ave_llp_avqa.json") -> Path:
    path = folder / name
    path.write_text(given if isinstance(given, str) else json.dumps(given, indent=1))
    return path


def imported(folder: Path, changes: Mapping[str, Any] | None = None, base: str = "clean"):
    return import_config(write(folder, {**SHIPPED, **(changes or {})}), base_of(base))


def model(folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    return load_run(imported(folder, changes).source)[1].model.model_dump()


def test_the_shipped_file_is_our_shipped_configuration(tmp_path: Path) -> None:
    found = imported(tmp_path)
    options, parts = load_run(found.source)
    ours, same = load_run(read(base_of("clean"), ["stream.tasks=[ave,avvp,avqa]", "seed=1999", "workers=16"]))
    # Options of the model that the file repeats and ours leaves at their values are compared by the model, in parts.
    assert options == ours.model_copy(update={"label": "ave_llp_avqa", "model": options.model})
    assert parts == same
    assert (options.label, options.seed, options.workers) == ("ave_llp_avqa", 1999, 16)
    assert options.stream.tasks == ("ave", "avvp", "avqa")
    # 4.3: what no key of the file says.
    training = options.training
    assert (training.optimizer, training.weight_decay, training.clip) == ("adam", 1e-5, 0.5)
    assert (training.schedule, training.schedule_by, training.lr_min, training.warmup) == ("cosine", "epoch", 1e-6, 0)
    assert found.hints == ()


def test_every_key_has_a_line_and_dead_ones_say_why(tmp_path: Path) -> None:
    found = imported(tmp_path)
    assert [line.key for line in found.lines] == [*SHIPPED]
    assert {line.key for line in found.lines if line.acts} == ACTING.keys()
    texts = {line.key: line.text for line in found.lines}
    assert all("without effect" in texts[key] for key in WITHOUT_EFFECT)
    assert all("never read" in texts[key] for key in NEVER_READ)
    assert all("do not use" in texts[key] or "file name" in texts[key] for key in UNUSED)
    assert all(texts[key] for key in NO_COUNTERPART)
    assert "d_prompt_length" in texts["prompt_length"]
    assert "8" in texts["Adapter_downsample"]
    assert str(found.lines[[*SHIPPED].index("prompt_length")]).startswith("ignored prompt_length 10: ")


@pytest.mark.parametrize("value", [None, -3, "?", [], {}, 1e300])
def test_dead_keys_never_fail(tmp_path: Path, value: Any) -> None:
    found = imported(tmp_path, dict.fromkeys(DEAD, value))
    assert load_run(found.source)[0].digest == load_run(imported(tmp_path).source)[0].digest


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"task_order": ["AVQA", "AVS", "AVE"]}, "stream.tasks", ["avqa", "avs", "ave"]),
        ({"seed": [7, 8]}, "seed", 7),
        ({"ViT": "ViT-B/16"}, "towers.visual.variant", "b16"),
        ({"ViT": "ViT-B/16"}, "towers.visual.checkpoint", "weights/ViT-B-16.pt"),
        ({"use_shallow_adapter": 0}, "model.shallow.blocks", []),
        ({"use_mid_prompt": 0}, "model.mid.blocks", []),
        ({"use_deep_prompt": 0}, "model.deep.blocks", []),
        ({"s_prompt_layer_idx": [0, 2]}, "model.shallow.blocks", [0, 2]),
        ({"m_prompt_layer_idx": [4]}, "model.mid.blocks", [4]),
        ({"d_prompt_layer_idx": [11, 10]}, "model.deep.blocks", [11, 10]),
        ({"d_prompt_length": 5}, "model.deep.length", 5),
        ({"pool_size": 9, "top_k": 4}, "model.deep.pool_size", 9),
        ({"pool_size": 9, "top_k": 4}, "model.deep.top_k", 4),
        ({"prompt_pool": 0, "pool_size": 5}, "model.deep.pool_size", 1),
        ({"prompt_pool": 0, "top_k": 2}, "model.deep.top_k", 1),
        ({"embedding_key": "mean_max"}, "model.deep.query", "mean_max"),
        ({"embedding_key": "cls"}, "model.deep.modalities", ["visual"]),
        ({"prompt_init": "zero"}, "model.deep.init", "zero"),
        ({"prompt_key_init": "zero"}, "model.deep.key_init", "zero"),
        ({"same_key_value": 1}, "model.deep.same_key_value", True),
        ({"num_tokens": 8}, "model.shallow.latents", 8),
        ({"num_conv_group": 4}, "model.shallow.groups", 4),
        ({"is_bn": 1}, "model.shallow.batch_norm", True),
        ({"is_before_layernorm": 0}, "model.shallow.pre_norm", False),
        ({"is_post_layernorm": 0}, "model.shallow.post_norm", False),
        ({"is_multimodal": 0}, "model.shallow.cross", False),
        ({"alpha": 0.5}, "model.shallow.alpha", 0.5),
        ({"beta": 0}, "model.shallow.beta", 0),
        ({"gamma": 1}, "model.shallow.gamma", 1),
        ({"N_CTX": 8, "CTX_INIT": ""}, "model.context.tokens", 8),
        ({"N_CTX": 8, "CTX_INIT": "sound_of a"}, "model.context.tokens", 3),
        ({"init_lr": 1e-3}, "training.lr", 1e-3),
        ({"init_epoch": 3}, "training.epochs", 3),
        ({"batch_size": 4}, "training.batch_size", 4),
        ({"num_workers": 0}, "workers", 0),
    ],
)
def test_keys_that_act(tmp_path: Path, changes: dict[str, Any], path: str, value: Any) -> None:
    tree: Any = imported(tmp_path, changes).source.tree
    for part in path.split("."):
        tree = tree[part]
    assert tree == value
    assert type(tree) is type(value) or isinstance(value, int)


def test_a_phase_that_is_off_has_no_blocks_in_the_model(tmp_path: Path) -> None:
    found = model(tmp_path, {"use_shallow_adapter": 0, "use_deep_prompt": False})
    assert (found["shallow"]["blocks"], found["mid"]["blocks"], found["deep"]["blocks"]) == ((), (3, 4), ())
    lines = {line.key: line for line in imported(tmp_path, {"use_deep_prompt": 0}).lines}
    assert not lines["d_prompt_layer_idx"].acts
    assert "use_deep_prompt is 0" in str(lines["d_prompt_layer_idx"])
    assert lines["use_deep_prompt"].acts


@pytest.mark.parametrize(
    ("changes", "reason"), [({"prompt_pool": 0}, "prompt_pool is 0"), ({"pool_size": 1, "top_k": 1}, "no keys")]
)
def test_without_a_choice_first_values_of_keys_are_said_to_be_ignored(
    tmp_path: Path, changes: Any, reason: str
) -> None:
    found = imported(tmp_path, {"prompt_key_init": "zero", **changes})
    line = next(line for line in found.lines if line.key == "prompt_key_init")
    assert not line.acts
    assert reason in str(line)
    assert "key_init" not in found.source.tree["model"]["deep"]


def test_a_count_that_a_phrase_overrides_is_said_to_be_ignored(tmp_path: Path) -> None:
    lines = {line.key: line for line in imported(tmp_path, {"N_CTX": 8}).lines}
    assert not lines["N_CTX"].acts
    assert "4 words" in lines["N_CTX"].text
    lines = {line.key: line for line in imported(tmp_path, {"CTX_INIT": ""}).lines}
    assert (lines["N_CTX"].acts, lines["CTX_INIT"].acts) == (True, False)


def test_what_one_run_cannot_do_is_a_hint(tmp_path: Path) -> None:
    hints = imported(tmp_path, {"seed": [3, 1, 3], "train": 0, "device": ["2", "0"], "init_epoch": 4}).hints
    assert [text for text in hints if "avcl sweep CONFIG --seed 3 --seed 1" in text]
    assert [text for text in hints if "avcl eval RUN" in text]
    assert [text for text in hints if "CUDA_VISIBLE_DEVICES=2" in text]
    assert [text for text in hints if "init_epoch 4" in text]
    assert len(hints) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task_order": ["AVE", "AVVP"]},
            r"task_order: found \[\"AVE\", \"AVVP\"\], expected tasks named AVE, LLP, AVS, AVQA",
        ),
        ({"task_order": ["AVE", "AQVA"]}, r"task_order: .*did you mean 'AVQA'"),
        ({"task_order": ["AVE", "AVE"]}, r"task_order: .*every task once"),
        ({"task_order": []}, r"task_order: found \[\]"),
        ({"task_order": "AVE"}, r"task_order: found \"AVE\""),
        ({"task_order": [1]}, r"task_order: "),
        ({"prefix": ""}, r"prefix: found \"\""),
        ({"model_name": "icarl"}, r"model_name: found \"icarl\", expected AVLearner"),
        ({"train": 2}, r"train: found 2, expected 0 or 1"),
        ({"train": "1"}, r"train: found \"1\""),
        ({"train": 1.0}, r"train: found 1\.0"),
        ({"seed": 1999}, r"seed: found 1999, expected a list"),
        ({"seed": []}, r"seed: found \[\]"),
        ({"seed": [-1]}, r"seed: found \[-1\]"),
        ({"seed": [True]}, r"seed: found \[true\]"),
        ({"device": []}, r"device: found \[\]"),
        ({"device": ["cuda"]}, r"device: "),
        ({"device": [-1]}, r"device: found \[-1\]"),
        ({"is_task_incremental": 0}, r"is_task_incremental: found 0, expected 1: .*model\.router=centres"),
        ({"ViT": "ViT-L/14"}, r"ViT: found \"ViT-L/14\", expected ViT-B/32 or ViT-B/16"),
        ({"embed_dim": 512}, r"embed_dim: found 512, expected 768"),
        ({"use_mid_prompt": 2}, r"use_mid_prompt: found 2, expected 0 or 1"),
        (
            {"s_prompt_layer_idx": [0, 12]},
            r"s_prompt_layer_idx: found \[0, 12\], expected different blocks from 0 to 11",
        ),
        ({"m_prompt_layer_idx": [3, 3]}, r"m_prompt_layer_idx: found \[3, 3\]"),
        ({"d_prompt_layer_idx": 5}, r"d_prompt_layer_idx: found 5"),
        ({"d_prompt_layer_idx": [-1]}, r"d_prompt_layer_idx: found \[-1\]"),
        ({"d_prompt_length": 0}, r"d_prompt_length: found 0, expected a whole number from 1"),
        ({"d_prompt_length": 2.5}, r"d_prompt_length: found 2\.5"),
        ({"d_prompt_length": True}, r"d_prompt_length: found true"),
        ({"pool_size": 0}, r"pool_size: found 0"),
        ({"top_k": 4}, r"top_k: found 4, expected at most pool_size 3"),
        ({"prompt_key": 0}, r"prompt_key: found 0, expected 1"),
        ({"embedding_key": "median"}, r"embedding_key: found \"median\", expected mean or max or mean_max or cls"),
        ({"prompt_init": "normal"}, r"prompt_init: found \"normal\", expected uniform or zero"),
        ({"use_prefix_tune_for_d_prompt": 0}, r"use_prefix_tune_for_d_prompt: found 0, expected 1"),
        ({"num_conv_group": 5}, r"num_conv_group: found 5, expected a divisor of 12"),
        ({"num_conv_group": 8, "s_prompt_layer_idx": [2]}, None),
        ({"num_conv_group": 5, "use_shallow_adapter": 0}, None),
        ({"alpha": -0.1}, r"alpha: found -0\.1, expected a number from 0"),
        ({"alpha": 1e999}, None),
        ({"beta": "much"}, r"beta: found \"much\""),
        ({"N_CTX": 0, "CTX_INIT": ""}, r"N_CTX: found 0"),
        ({"CTX_INIT": 4}, r"CTX_INIT: found 4"),
        ({"class_token_position": "middle"}, r"class_token_position: found \"middle\", expected end"),
        ({"fine_tune": 1}, r"fine_tune: found 1, expected 0"),
        ({"init_lr": 1e-7}, r"init_lr: found 1e-07, expected a number from 1e-06"),
        ({"init_lr": 0}, r"init_lr: found 0"),
        ({"init_epoch": 0}, r"init_epoch: found 0"),
        ({"batch_size": 0}, r"batch_size: found 0"),
        ({"num_workers": -1}, r"num_workers: found -1"),
        ({"use_deep_promt": 1}, r"use_deep_promt: unknown key; did you mean 'use_deep_prompt'"),
        ({"memory_\nlabel": 1}, r"unknown key"),
    ],
)
def test_impossible_values_name_file_and_key(tmp_path: Path, changes: dict[str, Any], message: str | None) -> None:
    if message is None and changes != {"alpha": 1e999}:
        imported(tmp_path, changes)
        return
    with pytest.raises(ConfigError, match=message or "Infinity is no number of JSON") as caught:
        imported(tmp_path, changes)
    assert str(caught.value).startswith(f"{tmp_path / 'ave_llp_avqa.json'}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_order": ["AVE"],\n "train": 1,\n}', r"ave_llp_avqa\.json:[23]: not JSON"),
        ('{"task_order": ["AVE"], "task_order": ["AVS"]}', r"task_order: key given twice"),
        ('["AVE"]', "found a list, expected an object"),
        ("{}", "task_order: is required"),
        ('{"task_order": ["AVE"], "alpha": 1e999}', r"alpha: found Infinity, expected a number from 0"),
        ("[" * 100_000, "not a JSON configuration"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_config(write(tmp_path, text), base_of("clean"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.json: No such file"):
        import_config(tmp_path / "gone.json", base_of("clean"))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"bytes\.json: not a JSON configuration"):
        import_config(tmp_path / "bytes.json", base_of("clean"))
    with pytest.raises(ConfigError, match=r"--protocol papers: .*did you mean 'paper'"):
        base_of("papers")


def test_keys_that_are_left_out_have_the_published_values(tmp_path: Path) -> None:
    options, parts = load_run(import_config(write(tmp_path, {"task_order": ["AVS", "AVQA"]}), base_of("clean")).source)
    full, same = load_run(read(base_of("clean"), ["stream.tasks=[avs,avqa]"]))
    assert (options, parts) == (full, same)


def test_paper_protocol(tmp_path: Path) -> None:
    options, parts = load_run(imported(tmp_path, base="paper").source)
    assert (options.stream.protocol, options.training.selection) == ("paper", "last")
    assert parts.tasks["avvp"].evaluation == "video_level"


@pytest.mark.parametrize("label", ["1e5", "null", "a: b # c", 'quote " and \\', "line\nbreak", "Ü → ✓", "\u2028x: 1"])
def test_the_written_file_is_the_configuration_whatever_its_texts_are(tmp_path: Path, label: str) -> None:
    found = imported(tmp_path, {"prefix": label, "description": "\u2028seed: 5\nseed: 6"})
    path = tmp_path / "out.yaml"
    path.write_text(found.yaml(), "utf-8")
    assert load_run(read(path)) == load_run(found.source)
    assert load_run(read(path))[0].label == label


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["avcl", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0)

    path = write(tmp_path, {**SHIPPED, "seed": [1999, 2000]})
    assert call("config", "import", str(path)) == 0
    out, said = tmp_path / "ave_llp_avqa.yaml", capsys.readouterr().out
    for key in SHIPPED:
        assert sum(line.split()[0] == key or line.startswith(f"ignored {key} ") for line in said.splitlines()) == 1, key
    assert f"wrote {out}: avcl run {out}" in said
    assert f"avcl sweep {out} --seed 1999 --seed 2000" in said
    comments = [line for line in out.read_text().splitlines() if line.startswith("#")]
    assert len(comments) == 1 + len(DEAD)
    assert call("config", "show", str(out)) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["stream"]["tasks"], shown["label"]) == (["ave", "avvp", "avqa"], "ave_llp_avqa")
    assert shown["model"]["deep"]["blocks"] == [5, 6, 7, 8, 9, 10, 11]
    assert call("config", "import", str(path)) == 2, "a configuration that is there is not overwritten"
    assert "exists already" in capsys.readouterr().err
    assert call("config", "import", str(path), str(tmp_path / "other.yaml"), "--protocol", "paper") == 0
    assert read(tmp_path / "other.yaml").tree["stream"]["protocol"] == "paper"
    write(tmp_path, {**SHIPPED, "pool_sise": 3}, "wrong.json")
    assert call("config", "import", str(tmp_path / "wrong.json")) == 2
    assert "did you mean 'pool_size'" in capsys.readouterr().err
    assert not (tmp_path / "wrong.yaml").exists()
