"""The head of the AVQACL benchmark's own method: a question reads the seconds of sound and the frames; its answer list grows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avcl_avqa.closed_words import UNKNOWN_INDEX
from avcl_avqa.grounding import frame_maps, widths
from avcl_avqa.head import QuestionEncoder, TemporalGrounding
from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features, FeatureSpec


class ClosedHead(nn.Module):
    """Question encoder, a projection and a cross-attention per modality, fusion and classifier (avqacl_moe.md 3.9).

    Each modality is a sequence of token means: a second of sound, a frame. The published visual sequence enters the attention as
    it is; here it has a linear layer too, since what is held along time *before* pooling (8-27) has to be learnt.

    Args:
        spec: shapes of the towers' tokens.
        words, answers: entries of the two lists so far; :meth:`widen` adds more.
        width: of everything inside, 512 as published.

    Outputs:
        ``answer`` ``[b, answers]``: logits. ``question`` ``[b, width]``: q. ``heard`` ``[b, T_a, width]``, ``seen`` ``[b, T_v, width]``:
        the sequences before pooling. ``fused`` ``[b, width]``: what the classifier reads.
    """

    def __init__(self, spec: FeatureSpec, words: int, answers: int, width: int = 512) -> None:
        super().__init__()
        visual, audio = widths(spec)
        self.spec = spec
        self.question = QuestionEncoder(words, width)
        self.hear = nn.Sequential(nn.Linear(audio, width), nn.ReLU(), nn.Linear(width, width))
        self.see = nn.Linear(visual, width)
        self.over_sound = TemporalGrounding(width)
        self.over_frames = TemporalGrounding(width)
        self.fuse = nn.Linear(2 * width, width)
        self.answer = nn.Linear(width, answers)

    def forward(self, features: Features, batch: Batch) -> Outputs:
        """Return the outputs for frame maps ``[b, T_v, N, C]``, sound ``[b, T_a, N_a, C_a]`` and ``words`` ``[b, L]``.

        Words that the list does not have yet are read as unknown.
        """
        words = batch.inputs["words"]
        known = self.question.embedding.weight.shape[0]
        question = self.question(torch.where(words < known, words, UNKNOWN_INDEX))
        sound = features.final["audio"][:, :, self.spec.final["audio"].class_tokens :].mean(2)
        heard, seen = self.hear(sound), self.see(frame_maps(features.final["visual"], self.spec).mean(2))
        pooled = [self.over_sound(question, heard), self.over_frames(question, seen)]
        fused = torch.tanh(self.fuse(torch.tanh(torch.cat(pooled, -1))) * question)
        return {"answer": self.answer(fused), "question": question, "heard": heard, "seen": seen, "fused": fused}

    def widen(self, words: int, answers: int) -> None:
        """Add entries to both lists; old rows of the embedding and old columns of the classifier keep their bits.

        Raises:
            ValueError: there would be fewer than before.
        """
        embedding, answer = self.question.embedding, self.answer
        if words < embedding.num_embeddings or answers < answer.out_features:
            raise ValueError(
                f"{words} words and {answers} answers, fewer than the {embedding.num_embeddings} and {answer.out_features} before;"
                " experiences have to be learnt in the task's own order"
            )
        width = embedding.embedding_dim
        if words > embedding.num_embeddings:
            self.question.embedding = nn.Embedding(words, width, device=embedding.weight.device)
            _keep(self.question.embedding.weight, embedding.weight)
        if answers > answer.out_features:
            self.answer = nn.Linear(width, answers, device=answer.weight.device)
            _keep(self.answer.weight, answer.weight)
            _keep(self.answer.bias, answer.bias)


@torch.no_grad()
def _keep(new: Tensor, old: Tensor) -> None:
    new[: len(old)] = old
