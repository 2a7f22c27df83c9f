"""Names of the segmentation head in AVMOE's AVS checkpoints, which are AVSBench's and CMBS's (avmoe.md 5.5)."""

from __future__ import annotations

from avcl_core.importing.keymap import KeyMap
from avcl_core.importing.published import TEMPLATES, Published, context_rules

_TPAVI = {
    "align": "align_channel",
    "query": "theta",
    "key": "phi",
    "value": "g",
    "out": "W_z.0",
    "batch_norm": "W_z.1",
    "norm": "norm_layer",
}
_FUSION = {"skip": "resConfUnit1", "unit": "resConfUnit2"}
_UNIT = {"first": "conv1", "second": "conv2"}
_READ_OUT = {"reduce": 0, "refine": 2, "out": 4}

HEAD = KeyMap(
    [
        *((rf"neck\.project\.{i}\.(.+)", rf"x{i + 1}_linear_.\1") for i in range(4)),
        (r"audio\.(.+)", r"audio_linear.\1"),
        (r"gating\.gates\.(\d)\.reduce\.0\.(.+)", r"temporal_attn.v_fc.\1.\2"),
        *context_rules(r"gating\.gates\.(\d)\.context", r".\1"),
        *(
            (rf"fusion\.{i}\.{ours}\.(.+)", rf"tpavi_b{i + 1}.{theirs}.\1")
            for i in range(4)
            for ours, theirs in _TPAVI.items()
        ),
        *(
            (rf"decoder\.paths\.{i}\.{part}\.{layer}\.(.+)", rf"path{4 - i}.{module}.{name}.\1")
            for i in range(4)
            for part, module in _FUSION.items()
            for layer, name in _UNIT.items()
        ),
        *((rf"decoder\.{ours}\.(.+)", rf"output_conv.{place}.\1") for ours, place in _READ_OUT.items()),
    ],
    # A second backbone and its neck, copied layers, decoders whose result is thrown away, the coarsest path's skip, and a
    # counter that a norm over clips does not have.
    dead=(
        rf"encoder_backbone\..+|conv[1-4]\..+|x[1-4]_linear\..+|{TEMPLATES}"
        r"|temporal_attn\.(video|audio)_decoder\..+|path4\.resConfUnit1\..+"
        r"|tpavi_b[1-4]\.W_z\.1\.num_batches_tracked"
    ),
)


def s4() -> Published:
    """Return how an S4 checkpoint is read."""
    return _checkpoint("s4")


def ms3() -> Published:
    """Return how an MS3 checkpoint is read."""
    return _checkpoint("ms3")


def _checkpoint(setting: str) -> Published:
    return Published(
        task="avs",
        package="avcl_avs",
        config=f"avs_{setting}_avmoe",
        head=HEAD,
        settings={"setting": setting, "head": "tpavi"},
        selected_on_test=True,
    )
