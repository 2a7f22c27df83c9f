"""PHP with phases left out, and the options and towers that are refused."""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from avcl_core.batch import Batch
from avcl_core.errors import ConfigError
from avcl_core.features import TokenShape
from avcl_core.models.php import Php, PhpOptions
from avcl_core.ownership import Owners
from avcl_core.prompts.sites import FromMemo
from avcl_core.testing import check_model, toy_towers
from avcl_core.walk import Ctx

_spec = importlib.util.spec_from_file_location("php_toys", Path(__file__).with_name("php_toys.py"))
toys = importlib.util.module_from_spec(_spec)
sys.modules["php_toys"] = toys
_spec.loader.exec_module(toys)
replace = toys.replace


# ------------------------------------------------------------------ ablations and refusals
@pytest.mark.parametrize(
    "left", [("shallow",), ("mid",), ("deep",), ("shallow", "mid"), ("mid", "deep"), ("shallow", "deep"), ()]
)
def test_every_phase_can_be_left_out(left):
    off = {phase: {"blocks": []} for phase in ("shallow", "mid", "deep") if phase not in left}
    run = toys.toy("spoken", **off)
    method, batch = toys.grown(run), toys.samples(run, "spoken0", 2)
    owners = {row.owner for row in Owners(method.model).rows.values()}
    assert ("shared" in owners) is ("shallow" in left)
    assert ("task:spoken0" in owners) is bool({"mid", "deep"} & set(left))
    terms = method.losses(batch)
    assert ("visual pool pull" in terms) is ("deep" in left)
    acts = {"shallow": {"add"}, "mid": {"prefix", "input"}, "deep": {"prefix"}}
    assert {place for _, _, place in method.model.sites} == set().union(*(acts[phase] for phase in left))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mid": {"blocks": [1, 1]}}, "mid.blocks names a block twice"),
        ({"deep": {"pool_size": 2, "top_k": 3}}, "deep.top_k 3 of a pool of 2"),
        ({"deep": {"query": "cls"}}, "deep.query: cls needs a class token"),
        ({"mid": {"rows": 7}}, "multiple of 2"),
        ({"shallow": {"num_tokens": 3}}, "num_tokens"),
        ({"deep": {"blocks": [-1]}}, "greater than or equal to 0"),
        ({"deep": {"modalities": []}}, "at least 1 item"),
        ({"deep": {"modalities": ["audio", "audio"]}}, "names a modality twice"),
        ({"centres": {"reads": ["visual", "visual"]}, "router": "centres"}, "names a modality twice"),
        ({"deep": {"pool_size": 1, "pull": 0.2}}, "pull has no effect with pool_size: 1"),
        ({"deep": {"pool_size": 1, "key_init": "zero"}}, "key_init has no effect with pool_size: 1"),
        ({"prompts": "shared", "task_init": "fresh"}, "task_init has no effect with prompts: shared"),
        ({"centres": {"count": 3}}, "centres has no effect with router: none"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PhpOptions(**options)


@pytest.mark.parametrize("changed", [{}, {"deep": {"pool_size": 1}}, {"prompts": "shared"}])
def test_a_complete_record_of_options_is_accepted(changed):
    options = PhpOptions(**changed)
    assert PhpOptions(**options.model_dump()) == options


def test_pools_for_sound_that_cannot_be_pooled_are_refused_when_the_model_is_built():
    towers = partial(heard_by, wide_sound)
    off = {"mid": {"blocks": []}, "shallow": {"blocks": []}}
    with pytest.raises(ConfigError, match="width 64 is no multiple of the tokens' width 12"):
        toys.toy("labels", towers=towers, **off).build()
    toys.toy("labels", towers=towers, **off, deep={"modalities": ["visual"]}).build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deep": {"blocks": [4]}}, r"model\.deep\.blocks: \[4\]; the towers have blocks 0 to 3"),
        ({"mid": {"rows": 1024}}, "fill 1024 channels, but the tokens have 32"),
        ({"context": {"tokens": 70}}, "the text encoder reads 77"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        toys.grown(toys.toy(**options))


def test_towers_without_texts_or_of_other_depths_are_refused():
    run = toys.toy("labels", towers=toy_towers)
    with pytest.raises(ConfigError, match=r"towers\.visual: swin_v2 has no text side"):
        run.build()
    short = partial(heard_by, three_blocks)
    with pytest.raises(ConfigError, match="have 4 and 3 blocks; they are walked block by block"):
        toys.toy("labels", towers=short).build()
    hidden = replace(toys.toy("labels"), task_id="hidden")
    with pytest.raises(ConfigError, match="task"):
        Php.requires.check("php", hidden.towers(), hidden.tasks, hidden.stream)


def heard_by(sound):
    """The toy visual tower beside the audio tower that ``sound`` makes."""
    return {"visual": toys.tiny_towers()["visual"], "audio": sound()}


def three_blocks():
    return sound_tower(8, (2, 1))


def wide_sound():
    """Four blocks on tokens 12 wide."""
    return sound_tower(12, (2, 2))


def sound_tower(width, depths):
    from shared_backbones.hts_at import audio_config
    from shared_backbones.logmel import LogMelOptions
    from shared_backbones.towers.clap import Clap
    from shared_backbones.vocabulary import byte_vocabulary

    known = toys.shifted_towers()["audio"]
    front = LogMelOptions(sample_rate=8000, hop=80, mels=16, scale="htk", n_fft=256, high=4000.0)
    text = known.net.config.text_config
    return Clap("tiny", audio_config(64, 16, width, depths, (1, 2), 4, 16), text, front, byte_vocabulary(0, 2, 1))


def test_sites_hold_no_parameters_of_prompts():
    model = toys.grown(toys.toy()).model
    for (_, _, place), modules in model.sites.items():
        assert all(isinstance(m, FromMemo) is (place != "add") for m in modules)
    assert not [n for n, m in model.parts.items() if isinstance(m, FromMemo) and list(m.parameters())]


def test_rows_of_two_tasks_in_one_batch_use_their_own_copies():
    run = toys.toy("spoken", experiences=2)
    method = toys.grown(run)
    one, two = (toys.samples(run, name, 2, "test") for name in ("spoken0", "spoken1"))
    apart = [toys.flat(toys.features(method, b)) for b in (one, two)]
    inputs = {
        n: torch.stack([one.inputs[n][0], two.inputs[n][0], one.inputs[n][1], two.inputs[n][1]]) for n in one.inputs
    }
    mixed = Batch("spoken", ("a", "b", "c", "d"), inputs)
    slots = ("spoken0", "spoken1", "spoken0", "spoken1")
    with torch.no_grad():
        found = toys.flat(method.model.features(mixed, Ctx(slots)))
    for name, value in found.items():
        expected = torch.stack([apart[0][name][0], apart[1][name][0], apart[0][name][1], apart[1][name][1]])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-10)


def test_model_contract():
    check_model(Php, toys.tiny_towers, toys.tasks_of("spoken", "labels", "mask", "tokens"), PhpOptions(**toys.TINY))


def test_spec_names_class_tokens_and_similarity():
    spec = toys.grown(toys.toy()).model.spec()
    assert spec.similarity == ("visual", "audio")
    assert spec.final["visual"] == TokenShape((4, 4), 64, 1)
    assert spec.stages["audio"][-1] == TokenShape((4, 4), 64, 0)
