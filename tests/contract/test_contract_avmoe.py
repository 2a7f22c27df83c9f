"""What a configuration of AVMOE may not ask for, told before anything is made."""

from dataclasses import replace

import pytest
import torch

from avcl_core.batch import Batch
from avcl_core.config.load import read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError
from avcl_core.models.avmoe import AvMoe, AvMoeOptions
from avcl_core.running.launch import Console, start
from avcl_core.testing import toy_task, toy_towers
from avcl_core.walk import Ctx


def source(*overrides: str):
    return read(find_config("ave_avmoe_embedded", "avcl_ave"), list(overrides))


def test_what_only_imported_runs_compute_is_not_trained_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = source("model.imported=true", "model.audio_placement=after_block")
    with pytest.raises(ConfigError, match=r"model\.imported: belongs to runs that avcl weights convert writes"):
        start(given, ["avcl"], Console())
    assert not list(tmp_path.iterdir())


def test_rates_name_heads_of_the_stream():
    assert load_run(source('training.rates={"head:a*": 2.0}'))[0].training.rates == {"head:a*": 2.0}
    with pytest.raises(ConfigError, match=r"training\.rates: 'head:avee' is no head of stream\.tasks \['ave'\]"):
        load_run(source('training.rates={"head:avee": 2.0}'))


@pytest.mark.parametrize("own", [{"adapters": "task"}, {"router": "task"}], ids=str)
def test_parts_of_each_task_need_the_task_to_be_known(own):
    assert AvMoe.needs(AvMoeOptions()).task_id == ("given", "hidden")
    assert AvMoe.needs(AvMoeOptions(**own)).task_id == ("given",)


def test_missing_sound_is_silence_without_stripes():
    torch.manual_seed(0)
    options = AvMoeOptions(reduction=2, latents=4, specaug=True)
    model = AvMoe(toy_towers(), {"labels": toy_task("labels")}, options)
    tower = model.towers["audio"]
    value = tower.frontend(torch.randn(6, tower.info.sample_rate)).unflatten(0, (3, 2))
    batch = Batch("labels", ("a", "b", "c"), {"audio": value}, seeds=(1, 2, 3))
    plain = tower.embed(value.flatten(0, 1))[0].unflatten(0, (3, 2))
    for present, same in ((None, ()), (torch.tensor([True, False, True]), (1,))):
        known = {} if present is None else {"audio": present}
        found = model.embed(tower, value, replace(batch, present=known), Ctx(training=True))[0].unflatten(0, (3, 2))
        assert [row for row in range(3) if torch.equal(found[row], plain[row])] == list(same)
