"""The patch head of AVQA: every visual token meets the sound of its second, then the question reads all tokens of the video."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from avcl_avqa.head import HEADS, QuestionEncoder, TemporalGrounding
from avcl_core.batch import Batch, Outputs
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec


def projection(inputs: int, width: int) -> nn.Sequential:
    """Return FC(ReLU(FC(·))) from ``inputs`` to ``width`` channels."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))


class TokenGrounding(TemporalGrounding):
    """Temporal grounding over sequences so long that keys and values of every token would be most of the work.

    With one query, W_k can stand on its side, qᵀ(W_k s + b_k) = (W_kᵀ q)ᵀ s + const, and W_v behind the sum over tokens: equal
    results, and per token two products with H vectors in place of two with d × d matrices.
    """

    def attend(self, question: Tensor, sequence: Tensor) -> Tensor:
        """Return what multi-head attention with the one query reads ``[b, d]``."""
        own = self.attention
        query, key, value = (part.unflatten(0, (own.num_heads, -1)) for part in own.in_proj_weight.chunk(3))
        query_bias, _, value_bias = (part.unflatten(0, (own.num_heads, -1)) for part in own.in_proj_bias.chunk(3))
        asked = torch.einsum("bd,hkd->bhk", question, query) + query_bias
        folded = torch.einsum("bhk,hkd->bhd", asked * own.head_dim**-0.5, key)
        weights = torch.softmax(folded @ sequence.mT, -1)
        weights = functional.dropout(weights, own.dropout, self.training)
        read = torch.einsum("bhd,hkd->bhk", weights @ sequence, value)
        return own.out_proj((read + weights.sum(-1, keepdim=True) * value_bias).flatten(1))


class PatchHead(nn.Module):
    """PHP's answer head (Yin et al., ICCV 2025; php.md 3.8): 17,822,250 parameters at d = 768, 93 words and 42 answers.

    All tokens of both towers are read, class tokens too, before the towers' final norms; d is the width of the visual ones.
    With X ``[N, d]`` and Y ``[N_a, D_a]`` of one second, and q the question:

    * a = l2(FC ReLU FC Y) and v = l2(FC ReLU FC X), two maps of their own; g = softmax(v aᵀ) a over the sounds of the same
      second; u = FC tanh [X; g];
    * the tokens of all seconds in one sequence each: z_a = over_sound(q, a), z_v = over_patches(q, u);
    * answer = FC tanh(q ⊙ FC tanh [z_a + mean a; z_v + mean u]).

    Differences to :class:`avcl_avqa.head.AnswerHead`, which shares question encoder and temporal grounding: that one takes one
    vector per second, the mean sound and the frame pooled by one attention; it normalises directions for the attention only;
    it has a match output.

    Outputs:
        ``answer`` ``[b, answers]``: logits.

    Raises:
        ConfigError: d is no multiple of the attention heads.
    """

    fusion = ("over_sound.feed_forward", "over_patches.feed_forward", "fuse")
    """Parts of which experts for this head are copies (avqacl_moe.md 3.10)."""

    def __init__(self, spec: FeatureSpec, words: int, answers: int) -> None:
        super().__init__()
        width, audio = (spec.stages[tower][-1].width for tower in ("visual", "audio"))
        if width % HEADS:
            raise ConfigError(
                f"task avqa: head patches has {HEADS} attention heads, which do not divide the {width} channels of towers.visual"
            )
        self.audio = projection(audio, width)
        self.visual = projection(width, width)
        self.mix = nn.Linear(2 * width, width)
        self.question = QuestionEncoder(words, width)
        self.over_sound = TokenGrounding(width)
        self.over_patches = TokenGrounding(width)
        self.fuse = nn.Linear(2 * width, width)
        self.answer = nn.Linear(width, answers)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for tokens ``[b, T, N, d]`` and ``[b, T, N_a, D_a]`` and ``question`` ``[b, 14]``."""
        sound, patches = self.media(features if features.distinct is None else features.distinct.features)
        if features.distinct is not None:
            sound, patches = sound[features.distinct.rows], patches[features.distinct.rows]
        question = self.question(batch.inputs["question"])
        fused = [
            self.over_sound(question, sound) + sound.mean(1),
            self.over_patches(question, patches) + patches.mean(1),
        ]
        return {"answer": self.answer(torch.tanh(self.fuse(torch.tanh(torch.cat(fused, -1))) * question))}

    def media(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return what no question changes, a ``[b, T · N_a, d]`` and u ``[b, T · N, d]``.

        One sequence over all seconds: a question weighs every token against every other.
        """
        seen, heard = (features.stages[tower][-1] for tower in ("visual", "audio"))
        sound = functional.normalize(self.audio(heard), dim=-1)
        sight = functional.normalize(self.visual(seen), dim=-1)
        grounded = torch.softmax(sight @ sound.mT, -1) @ sound
        patches = self.mix(torch.tanh(torch.cat([seen, grounded], -1)))
        return sound.flatten(1, 2), patches.flatten(1, 2)
