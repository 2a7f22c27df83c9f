"""The shipped configurations are valid, are what their names say, and their heads fit their towers."""

import pytest
import torch

from avcl_avs import plugin
from avcl_avs.head import SegmentationHead
from avcl_core.config.load import read
from avcl_core.config.options import Options
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.models.base import Model
from avcl_core.testing import check_task
from shared_backbones import create

SHIPPED = {
    "embedded": ("s4", "tpavi", "swin_v2"),
    "embedded_ms3": ("ms3", "tpavi", "swin_v2"),
    "digits_ms3": ("ms3", "tpavi", "swin_v2"),
    "s4": ("s4", "tpavi", "swin_v2"),
    "ms3": ("ms3", "tpavi", "swin_v2"),
    "s4_pvt": ("s4", "avsbench", "pvt_v2"),
    "ms3_pvt": ("ms3", "avsbench", "pvt_v2"),
    "s4_resnet50": ("s4", "avsbench", "resnet50"),
    "ms3_resnet50": ("ms3", "avsbench", "resnet50"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_are_valid(name):
    places = ["data.world.images=a", "data.world.sounds=b"] if name.startswith("digits") else []
    options, parts = load_run(read(find_config(name, "avcl_avs"), places))
    task = parts.tasks["avs"]
    assert (task.setting, task.head, options.towers["visual"].name) == SHIPPED[name]
    full = not name.startswith(("embedded", "digits"))
    assert (task.width, task.mask_size) == ((256, 224) if full else (32, 64))
    assert (options.data.world is None) == full
    # Batch normalisation refuses a divided batch.
    assert options.training.micro_batch is None
    if full:
        assert (options.training.epochs, options.training.lr) == ((60, 1.5e-4) if "ms3" in name else (50, 3e-4))


@pytest.mark.parametrize(
    ("name", "total"),
    [("s4", 29_050_185), ("s4_pvt", 18_697_409), ("s4_resnet50", 44_649_665)],
)
def test_heads_fit_the_full_towers(name, total):
    """Shapes alone: 9,256,129 parameters of TPAVI, decoder and read-out stand behind every neck."""
    options, parts = load_run(read(find_config(name, "avcl_avs")))
    with torch.device("meta"):
        towers = {kind: create(tower.name, size="full") for kind, tower in options.towers.items()}
        head = SegmentationHead(Model(towers, {}, Options()).spec(), parts.tasks["avs"])
    assert sum(p.numel() for p in head.parameters()) == total


def test_baseline_runs_over_its_towers(avs_prepared):
    towers = {
        "visual": create("pvt_v2", size="tiny", pretrained=False),
        "audio": create("vggish", size="tiny", pretrained=False),
    }
    task = plugin.build(plugin.options(setting="ms3", head="avsbench", width=8, mask_size=64), avs_prepared, "clean")
    check_task(task, towers, samples=2)
