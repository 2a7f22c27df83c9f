"""The bridge to mmsegmentation: its decode heads where mmcv's compiled operators are there, a clear error where not."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from avcl_avs.head import SegmentationHead
from avcl_avs.mmseg_bridge import decode_head
from avcl_avs.options import SegmentationOptions
from avcl_core.errors import ConfigError
from avcl_core.features import FeatureSpec, TokenShape

WITHOUT_OPERATORS = find_spec("mmseg") is not None and find_spec("mmcv._ext") is None

# A stand-in for the compiled operators lets the real heads be built: those tried here do not call any.
HEADS = """
import sys, warnings
from unittest.mock import MagicMock
warnings.simplefilter("ignore")
import mmcv
try:
    import mmcv._ext
except ImportError:
    sys.modules["mmcv._ext"] = MagicMock(__spec__=None)
import torch
from avcl_avs.head import SegmentationHead
from avcl_avs.mmseg_bridge import MmsegDecoder, decode_head
from avcl_avs.options import SegmentationOptions
from avcl_core.batch import Batch
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec, TokenShape

torch.manual_seed(0)
for name in ("FCNHead", "UPerHead", "SegformerHead"):
    maps = [torch.randn(2, 16, size, size, requires_grad=True) for size in (16, 8, 4, 2)]
    decoder = MmsegDecoder(name, 16, 64)
    logits = decoder(maps)
    assert logits.shape == (2, 64, 64), logits.shape
    logits.square().mean().backward()
    assert all(value.grad.abs().sum() > 0 for value in maps), name
    assert not [m for m in decoder.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
stages = tuple(TokenShape((size, size), width) for size, width in ((8, 3), (4, 4), (2, 5), (1, 6)))
spec = FeatureSpec({"visual": stages[-1], "audio": TokenShape((1, 1), 7)}, {"visual": stages})
head = SegmentationHead(spec, SegmentationOptions(head="mmseg:FCNHead", width=8, mask_size=32)).eval()
tokens = tuple(torch.randn(1, 5, shape.tokens, shape.width) for shape in stages)
outputs = head(Features({"visual": tokens[-1], "audio": torch.randn(1, 5, 1, 7)}, {"visual": tokens}), Batch("avs", (), {}))
assert outputs["logits"].shape == (1, 5, 224, 224)
for name in ("FCNHed", "Mask2FormerHead"):
    try:
        decode_head(name, [16] * 4, 16)
    except ConfigError as error:
        print(error)
"""


@pytest.mark.skipif(find_spec("mmseg") is None, reason="mmsegmentation is not installed")
def test_decode_heads_give_logits_and_gradients():
    done = subprocess.run([sys.executable, "-c", HEADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    unknown, unfit = done.stdout.strip().splitlines()[-2:]
    assert "mmseg:FCNHed is unknown; did you mean 'FCNHead'?" in unknown
    assert "mmseg:Mask2FormerHead cannot read 4 maps" in unfit


@pytest.mark.skipif(not WITHOUT_OPERATORS, reason="mmcv has its compiled operators, or mmsegmentation is not installed")
def test_missing_operators_are_named_with_the_way_to_get_them():
    with pytest.raises(
        ConfigError, match=r"mmseg:FCNHead needs the compiled operators of mmcv .*pip install .* mmcv==2\.1\.0"
    ):
        decode_head("FCNHead", [8] * 4, 8)


def test_missing_mmsegmentation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmseg.registry", None)
    spec = FeatureSpec(
        {"visual": TokenShape((1, 1), 4), "audio": TokenShape((1, 1), 4)}, {"visual": (TokenShape((1, 1), 4),) * 4}
    )
    with pytest.raises(ConfigError, match=r"tasks\.avs\.head: mmseg:UPerHead needs mmsegmentation .*avcl-avs\[mmseg\]"):
        SegmentationHead(spec, SegmentationOptions(head="mmseg:UPerHead", width=8))
