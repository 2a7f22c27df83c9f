"""Names of the grouping head in AVMOE's AVVP checkpoints, which are MGN's (avmoe.md 5.5)."""

from __future__ import annotations

from avcl_core.importing.keymap import KeyMap
from avcl_core.importing.published import Published

_STREAMS = {"audio": "audio_cug", "visual": "visual_cug", "joint": "av_mcg"}
_GROUPINGS = {"cross": "han_encoder", "group": "grouping"}
_BLOCK = (
    (r"attention_norm\.(.+)", r"norm1.{}"),
    (r"attention\.in_proj_(.+)", r"attn.qkv.{}"),
    (r"attention\.out_proj\.(.+)", r"attn.proj.{}"),
    (r"mlp_norm\.(.+)", r"norm2.{}"),
    (r"mlp\.0\.(.+)", r"mlp.fc1.{}"),
    (r"mlp\.2\.(.+)", r"mlp.fc2.{}"),
)
_GROUPING = (
    (r"token_norm\.(.+)", r"norm_tokens.{}"),
    (r"segment_norm\.(.+)", r"norm_x.{}"),
    (r"token_mlp\.0\.(.+)", r"mlp_inter.fc1.{}"),
    (r"token_mlp\.2\.(.+)", r"mlp_inter.fc2.{}"),
    (r"query_norm\.(.+)", r"norm_post_tokens.{}"),
    (r"read\.attention\.in_proj_(.+)", tuple(rf"pre_assign_attn.attn.{part}_proj.{{}}" for part in "qkv")),
    (r"read\.attention\.out_proj\.(.+)", r"pre_assign_attn.attn.proj.{}"),
    (r"read\.mlp_norm\.(.+)", r"pre_assign_attn.norm2.{}"),
    (r"read\.mlp\.0\.(.+)", r"pre_assign_attn.mlp.fc1.{}"),
    (r"read\.mlp\.2\.(.+)", r"pre_assign_attn.mlp.fc2.{}"),
    (r"read\.norm\.(.+)", r"pre_assign_attn.norm_post.{}"),
    (r"assign\.query\.(.+)", r"assign.q_proj.{}"),
    (r"assign\.key\.(.+)", r"assign.k_proj.{}"),
    (r"assign\.value\.(.+)", r"assign.v_proj.{}"),
    (r"assign\.project\.(.+)", r"assign.proj.{}"),
    (r"mlp_norm\.(.+)", r"norm_new_x.{}"),
    (r"mlp\.0\.(.+)", r"mlp_channels.fc1.{}"),
    (r"mlp\.2\.(.+)", r"mlp_channels.fc2.{}"),
)


def _templates(prefix: str, templates: str | tuple[str, ...], group: str) -> tuple[str, ...]:
    names = (templates,) if isinstance(templates, str) else templates
    return tuple(prefix + name.format(group) for name in names)


HEAD = KeyMap(
    [
        (r"segments\.audio\.(.+)", r"fc_a.\1"),
        (r"segments\.visual\.(.+)", r"fc_v.\1"),
        (r"segments\.motion\.(.+)", r"fc_st.\1"),
        (r"segments\.fuse\.(.+)", r"fc_fusion.\1"),
        (r"(audio|visual)_token", r"\1_token"),
        *(
            (rf"{mine}\.blocks\.(\d+)\.{ours}", _templates(rf"{theirs}.blocks.\1.", name, r"\2"))
            for mine, theirs in _STREAMS.items()
            for ours, name in _BLOCK
        ),
        *(
            (rf"{mine}\.{kind}\.{ours}", _templates(f"{theirs}.{module}.", name, r"\1"))
            for mine, theirs in _STREAMS.items()
            for kind, module in _GROUPINGS.items()
            for ours, name in _GROUPING
        ),
        (r"clip\.(.+)", r"fc_prob.\1"),
        (r"clip_audio\.(.+)", r"fc_prob_a.\1"),
        (r"clip_visual\.(.+)", r"fc_prob_v.\1"),
        (r"token_class\.(.+)", r"fc_cls.\1"),
    ]
)


def checkpoint() -> Published:
    """Return how an AVVP checkpoint is read."""
    return Published(
        task="avvp", package="avcl_avvp", config="avvp_avmoe", head=HEAD, settings={"head": "mgn", "motion": True}
    )
