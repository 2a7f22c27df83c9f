"""The closed lists of a data set: answers and question words. MUSIC-AVQA's are frozen; a data set of your own brings its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avcl_core.data.records import AnnotationFile

PAD = "<pad>"
"""Word 0: fills a question up to its fixed length, and is not masked."""
LONGEST = 14
"""Words that a question may have."""
ANSWERS_FILE, WORDS_FILE = "ans_vocab.txt", "ques_vocab.txt"
"""One entry per line, beside the question files."""

_ANSWER_LIST = """
two,cello,congas,zero,no,pipa,six,yes,one,four,three,seven,five,ukulele,right,piano,left,accordion,clarinet,guzheng,
more than ten,nine,indoor,saxophone,drum,violin,middle,outdoor,bagpipe,bassoon,acoustic_guitar,banjo,electric_bass,
ten,eight,flute,simultaneously,trumpet,erhu,xylophone,tuba,suona
"""
_WORD_LIST = """
How many instruments are sounding in the video What kind of instrument is leftest musical it did not sound from
beginning to end Is on left louder than right guzheng types accordion always playing clarinet there a voiceover this
cello violin flute pipa piano Which that sounds at same time as acoustic_guitar Where first electric_bass drum more
rhythmic ukulele banjo saxophone trumpet erhu middle congas entire tuba bagpipe loudest comes xylophone bassoon suona
second appeared performance rightest coming third last Are and makes before after lowest fourth longer fifth were
heard throughout
"""

ANSWERS = tuple(_ANSWER_LIST.replace("\n", "").split(","))
"""The 42 answers of MUSIC-AVQA in index order (order of first appearance in the original train file)."""

WORDS = (PAD, *_WORD_LIST.split())
"""The 93 question words of MUSIC-AVQA in index order, padding first."""


@dataclass(frozen=True)
class Vocabulary:
    """What can be answered and which words can be asked with, both in index order."""

    answers: tuple[str, ...] = ANSWERS
    words: tuple[str, ...] = WORDS

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """Return the word indices of a question, int64 ``[14]``, padded at the end; ValueError for an unknown word."""
        indices = [self.words.index(word) for word in words]
        return np.array(indices + [0] * (LONGEST - len(indices)), dtype=np.int64)


def list_file(folder: Path, name: str) -> Path:
    """Return where a list lies: beside the question files in ``folder``, or in the folder above, as some copies have it."""
    return next((path for path in (folder / name, folder.parent / name) if path.exists()), folder / name)


def vocabulary_beside(folder: Path) -> tuple[Vocabulary, list[AnnotationFile]]:
    """Return the vocabulary of the question files in ``folder``, and the list files read, with their findings.

    A list that is not there is MUSIC-AVQA's; so is one with exactly its entries, whatever their order: index order is frozen.
    """
    answers, words = (AnnotationFile(list_file(folder, name)) for name in (ANSWERS_FILE, WORDS_FILE))
    found = [file for file in (answers, words) if file.path.exists()]
    known = {file.path.name: tuple(file.collect(read_list)) for file in found}
    vocabulary = Vocabulary(
        _frozen(known.get(ANSWERS_FILE, ()), ANSWERS),
        _frozen(_padded(words, known.get(WORDS_FILE, ())), WORDS),
    )
    return vocabulary, found


def read_list(file: AnnotationFile) -> list[str]:
    """Return the entries of a list file in order.

    A list that stands there twice, one after the other, counts once: MUSIC-AVQA's question words are shipped so. Any other
    repetition, and an empty line, is recorded in ``file.problems``.
    """
    lines = file.lines()
    texts = [text.strip() for _, text in lines]
    half = len(texts) // 2
    if len(texts) % 2 == 0 and texts[:half] == texts[half:]:
        lines, texts = lines[:half], texts[:half]
    first: dict[str, int] = {}
    for (line, _), text in zip(lines, texts, strict=True):
        before = first.setdefault(text, line)
        if not text:
            file.note(line, "entry", "an empty line", "one entry per line", "remove the line")
        elif before != line:
            found = f"{text!r}, also in line {before}"
            file.note(line, "entry", found, "each entry once, or the whole list twice", "remove one of the lines")
    return texts


def _padded(file: AnnotationFile, words: tuple[str, ...]) -> tuple[str, ...]:
    if PAD in words[1:]:
        file.note(words.index(PAD) + 1, "entry", PAD, f"{PAD} in the first line or not at all", "move it to the top")
    return words if not words or words[0] == PAD else (PAD, *words)


def _frozen(found: tuple[str, ...], published: tuple[str, ...]) -> tuple[str, ...]:
    return published if not found or set(found) == set(published) else found
