"""Names of the answer and grounding heads in AVMOE's AVQA checkpoints, which are MUSIC-AVQA's (avmoe.md 5.5)."""

from __future__ import annotations

from avcl_core.importing.keymap import KeyMap, Rule
from avcl_core.importing.published import Published

_GROUNDING: list[Rule] = [
    (r"grounding\.audio_in\.(.+)", r"fc_a1.\1"),
    (r"grounding\.audio_out\.(.+)", r"fc_a2.\1"),
    (r"grounding\.fuse\.(.+)", r"fc_gl.\1"),
    *((rf"grounding\.match_layers\.{i}\.(.+)", rf"fc{i + 1}.\1") for i in range(4)),
]


def _reading(ours: str, letter: str, digit: int) -> list[Rule]:
    """Temporal grounding of one modality; the authors number its layers."""
    return [
        (rf"{ours}\.attention\.(.+)", rf"attn_{letter}.\1"),
        (rf"{ours}\.feed_forward\.0\.(.+)", rf"linear{digit}1.\1"),
        (rf"{ours}\.feed_forward\.3\.(.+)", rf"linear{digit}2.\1"),
        (rf"{ours}\.norm\.(.+)", rf"norm{digit}.\1"),
    ]


ANSWERS = KeyMap(
    [
        *_GROUNDING,
        (r"question\.embedding\.(.+)", r"question_encoder.word2vec.\1"),
        (r"question\.lstm\.(.+)", r"question_encoder.lstm.\1"),
        (r"question\.project\.(.+)", r"question_encoder.fc.\1"),
        *_reading("over_frames", "v", 1),
        *_reading("over_sound", "a", 2),
        (r"fuse\.(.+)", r"fc_fusion.\1"),
        (r"answer\.(.+)", r"fc_ans.\1"),
    ],
    dead=r"(fc_a1_pure|fc_a2_pure|norm3)\.(weight|bias)",
)
GROUNDING = KeyMap(_GROUNDING)
TRAINED_ANSWERS = 50
"""Rows of the answer layer in the released training script; only the first 42 have answers."""


def answers() -> Published:
    """Return how an AVQA checkpoint is read."""
    return Published(
        task="avqa",
        package="avcl_avqa",
        config="avqa_avmoe",
        head=ANSWERS,
        settings={"head": "grounding"},
        surplus={"fc_ans.weight": TRAINED_ANSWERS, "fc_ans.bias": TRAINED_ANSWERS},
    )


def grounding() -> Published:
    """Return how the file of the grounding stage is read."""
    return Published(
        task="avqa_ground", package="avcl_avqa", config="ground_music_avqa", head=GROUNDING, adapters=False
    )
