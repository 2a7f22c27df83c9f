"""Names of the AVE head in checkpoints of AVMOE and DG-SCT (avmoe.md 5.5): temporal attention and CMBS."""

from __future__ import annotations

from avcl_core.importing.keymap import KeyMap
from avcl_core.importing.published import TEMPLATES, Published, context_rules

_DECODER = (
    ("query", "affine_matrix"),
    ("attention", "decoder.layers.0.multihead_attn"),
    ("attended", "decoder.layers.0.norm1"),
    (r"feed_forward\.0", "decoder.layers.0.linear1"),
    (r"feed_forward\.3", "decoder.layers.0.linear2"),
    ("fed", "decoder.layers.0.norm2"),
)

HEAD = KeyMap(
    [
        (r"clip\.temporal\.visual_input\.0\.(.+)", r"temporal_attn.v_fc.\1"),
        (r"clip\.temporal\.audio_input\.(.+)", r"temporal_attn.a_fc.\1"),
        *context_rules(r"clip\.temporal\.context()", ""),
        *(
            (rf"clip\.temporal\.{mine}_decoder\.{ours}\.(.+)", rf"temporal_attn.{theirs}_decoder.{name}.\1")
            for mine, theirs in (("visual", "video"), ("audio", "audio"))
            for ours, name in _DECODER
        ),
        (r"clip\.visual_scores\.(.+)", r"CMBS.video_cas.\1"),
        (r"clip\.audio_scores\.(.+)", r"CMBS.audio_cas.\1"),
        (r"relevance\.(.+)", r"CMBS.localize_module.classifier.\1"),
        (r"event\.(.+)", r"CMBS.localize_module.event_classifier.\1"),
    ],
    # Templates of copied layers, and a self-attention that the decoders never run.
    dead=rf"{TEMPLATES}|temporal_attn\.(video|audio)_decoder\.(decoder_layer|decoder\.layers\.0\.self_attn)\..+",
)


def checkpoint() -> Published:
    """Return how an AVE checkpoint is read; DG-SCT's gives its head and towers."""
    return Published(
        task="ave",
        package="avcl_ave",
        config="ave_avmoe",
        head=HEAD,
        settings={"setting": "supervised", "head": "cmbs"},
        foreign_adapters=True,
        selected_on_test=True,
    )
