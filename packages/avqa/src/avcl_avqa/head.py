"""The AVQA head: a question reads the grounded frames and the sound over time, and picks one answer of a closed list."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl_avqa.grounding import GroundingHead, frame_maps, match_pairs, sound_means, widths
from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec
from avcl_core.heads.temporal import Lstm

HEADS = 4
DROPOUT = 0.1


class QuestionEncoder(nn.Module):
    """Step 4: embedding, tanh, LSTM, last hidden and cell state, tanh, projection."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = Lstm(width, width)
        self.project = nn.Linear(2 * width, width)

    def forward(self, question: Tensor) -> Tensor:
        """Word indices ``[b, L]`` → q ``[b, d]``; padding is read like a word."""
        _, (hidden, cell) = self.lstm(torch.tanh(self.embedding(question)))
        return self.project(torch.tanh(torch.cat([hidden[-1], cell[-1]], -1)))


class TemporalGrounding(nn.Module):
    """Step 5 for one modality: the question attends over a sequence (seconds, tokens); feed-forward, residual, norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, HEADS, dropout=DROPOUT, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(width, width), nn.Dropout(DROPOUT)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, question: Tensor, sequence: Tensor) -> Tensor:
        """q ``[b, d]`` and a sequence ``[b, L, d]`` → ``[b, d]``."""
        attended = self.attend(question, sequence)
        return self.norm(attended + self.feed_forward(attended))

    def attend(self, question: Tensor, sequence: Tensor) -> Tensor:
        """Return what multi-head attention with the one query reads ``[b, d]``."""
        return self.attention(question[:, None], sequence, sequence, need_weights=False)[0][:, 0]


class AnswerHead(nn.Module):
    """The ST-AVQA grounding head (tasks.md 4.4), 66,870,444 parameters at d = 1536, audio 768, 93 words and 42 answers.

    d is the width of the visual tower's final tokens. The audio tower's tokens are taken before its final norm. Negative
    frames, where the batch has them, are final tokens of the plain visual tower; without them the match head is not run.

    Outputs:
        ``answer`` ``[b, answers]``: logits.
        ``match`` ``[b, 2, T, 2]``, only with negative frames: match logits of positive and negative frames.
    """

    fusion = ("over_sound.feed_forward", "over_frames.feed_forward", "fuse")
    """Parts of which experts for this head are copies (avqacl_moe.md 3.10)."""

    def __init__(self, spec: FeatureSpec, words: int, answers: int) -> None:
        super().__init__()
        width, audio = widths(spec)
        self.spec = spec
        self.grounding = GroundingHead(width, audio)
        self.question = QuestionEncoder(words, width)
        self.over_sound = TemporalGrounding(width)
        self.over_frames = TemporalGrounding(width)
        self.fuse = nn.Linear(2 * width, width)
        self.answer = nn.Linear(width, answers)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for frame maps ``[b, T, N, d]``, sound ``[b, T, N_a, D_a]`` and ``question`` ``[b, 14]``."""
        sound = self.grounding.sound(sound_means(features, self.spec))
        frames = self.grounding.ground(frame_maps(features.final["visual"], self.spec), sound)
        question = self.question(batch.inputs["question"])
        heard = self.over_sound(question, sound) + sound.mean(1)
        seen = self.over_frames(question, frames) + frames.mean(1)
        fused = self.fuse(torch.tanh(torch.cat([heard, seen], -1)))
        outputs = {"answer": self.answer(torch.tanh(fused * question))}
        if "negative" in features.plain:
            negative = self.grounding.ground(frame_maps(features.plain["negative"], self.spec), sound)
            outputs["match"] = match_pairs(self.grounding, sound, frames, negative)
        return outputs


class MatchHead(nn.Module):
    """The grounding stage's head: its ``grounding`` submodule is the one that an :class:`AnswerHead` starts from.

    Outputs:
        ``match`` ``[b, 2, T, 2]``: match logits of positive and negative frames.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        super().__init__()
        self.spec = spec
        self.grounding = GroundingHead(*widths(spec))

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the match logits of frames, sound and negative frames."""
        sound = self.grounding.sound(sound_means(features, self.spec))
        frames, negative = (
            self.grounding.ground(frame_maps(tokens, self.spec), sound)
            for tokens in (features.final["visual"], features.plain["negative"])
        )
        return {"match": match_pairs(self.grounding, sound, frames, negative)}
