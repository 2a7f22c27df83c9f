"""What a language model is told and what it answers, as ids: a template, with places for media, around a question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shared_backbones.vocabulary import Vocabulary

PLACES = {"image": -200, "audio": -300, "video": -400}
"""The id that stands in a prompt where the tokens of a medium go; never looked up among the words (avqacl_moe.md 3.2)."""
_MARKER = re.compile("<(" + "|".join(PLACES) + ")>")


@dataclass(frozen=True)
class Template:
    """What surrounds the human's text; the answer and the end token follow."""

    before: str
    after: str


VICUNA = Template(
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. USER: ",
    " ASSISTANT:",
)
"""The template of Vicuna v1, with which LLaVA-1.5 and Uni-MoE were trained (avqacl_moe.md 3.2)."""
BARE = Template("", "\n>")
"""For bytes as words, of which a system sentence would be a hundred."""


@dataclass(frozen=True)
class Dialogue:
    """A template in a vocabulary that can decode."""

    template: Template
    vocabulary: Vocabulary

    def prompt(self, text: str) -> list[int]:
        """Ids of a human's text with ``<image>``, ``<audio>``, ``<video>`` where media go: start, template, text, template.

        Each piece between two places is tokenised by itself, as the weights were trained (avqacl_moe.md 3.2).
        """
        ids = [self.vocabulary.start]
        pieces = _MARKER.split(f"{self.template.before}{text}{self.template.after}")
        for index, piece in enumerate(pieces):
            ids += [PLACES[piece]] if index % 2 else self.vocabulary.encode(piece)
        return ids

    def question(self, text: str) -> list[int]:
        """Ids of the question alone, without template and places: what a router reads."""
        return self.vocabulary.encode(_MARKER.sub("", text).strip())

    def answer(self, text: str) -> list[int]:
        """Ids of an answer behind a prompt, and the end. ValueError where there is nothing to learn."""
        text = text.strip()
        if not text:
            raise ValueError("an empty answer has no words to learn")
        return [*self.vocabulary.encode(text), self.vocabulary.end]

    def read(self, ids: Sequence[int]) -> str:
        """The text of generated ids, up to the end token where there is one."""
        ids = list(ids)
        kept = ids[: ids.index(self.vocabulary.end)] if self.vocabulary.end in ids else ids
        assert self.vocabulary.decode is not None
        return self.vocabulary.decode(kept).strip()
