"""Text to token ids: byte level for the tiny towers, and the vocabularies of CLIP, RoBERTa and LLaMA from local files."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_backbones.errors import TowerError, WeightsError

STAND_IN = "stand-in"
"""In place of a tokenizer's file: ids without meaning, to measure random weights with."""

CLIP_MERGES = 49152 - 256 - 2  # of the merges in the published file, those that the released models use


@dataclass(frozen=True)
class Vocabulary:
    """``encode`` gives the ids of a text without special tokens; ``start``, ``end``, ``pad`` are theirs; ``size`` counts all.

    ``decode`` is there where text is generated: ids without special tokens to a text.
    """

    encode: Callable[[str], list[int]]
    start: int
    end: int
    pad: int
    size: int
    decode: Callable[[Sequence[int]], str] | None = None


def byte_vocabulary(start: int, end: int, pad: int) -> Vocabulary:
    """UTF-8 bytes of the lower-cased text as ids, after the special tokens' places are left free: 259 ids in all."""
    special = {start, end, pad}
    free = [i for i in range(256 + len(special)) if i not in special]
    number = {index: byte for byte, index in enumerate(free)}
    return Vocabulary(
        lambda text: [free[byte] for byte in text.lower().encode()],
        start, end, pad, 256 + len(special),
        lambda ids: bytes(number[i] for i in ids if i in number).decode(errors="replace"),
    )  # fmt: skip


def stand_in_vocabulary(start: int, end: int, pad: int, size: int) -> Vocabulary:
    """Words and punctuation marks as ids made from their bytes: lengths like BPE's, for random weights that know no words."""
    special = {start, end, pad}

    def identify(word: str) -> int:
        found = zlib.crc32(word.encode()) % size
        return found if found not in special else identify(word + "'")

    return Vocabulary(
        lambda text: [identify(w) for w in re.findall(r"\w+|[^\w\s]", text.lower())], start, end, pad, size
    )


def clip_vocabulary(path: str | Path) -> Vocabulary:
    """CLIP's BPE from ``bpe_simple_vocab_16e6.txt.gz`` or from a folder with vocab.json and merges.txt.

    Raises WeightsError where the file or folder does not hold that vocabulary.
    """
    from transformers import CLIPTokenizer

    vocab, merges = (
        _bpe_from_gzip(Path(path)) if Path(path).is_file() else _bpe_from_folder(Path(path), "tokenizer of CLIP")
    )
    start, end = (_special(vocab, token, path) for token in ("<|startoftext|>", "<|endoftext|>"))
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges)
    return Vocabulary(lambda text: tokenizer.encode(text, add_special_tokens=False), start, end, 0, len(vocab))


def roberta_vocabulary(path: str | Path) -> Vocabulary:
    """RoBERTa's byte-level BPE from a folder with vocab.json and merges.txt. WeightsError where they are not there."""
    from transformers import RobertaTokenizer

    vocab, merges = _bpe_from_folder(Path(path), "tokenizer of CLAP (RoBERTa)")
    start, end, pad = (_special(vocab, token, path) for token in ("<s>", "</s>", "<pad>"))
    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges)
    return Vocabulary(lambda text: tokenizer.encode(text, add_special_tokens=False), start, end, pad, len(vocab))


def sentencepiece_vocabulary(path: str | Path) -> Vocabulary:
    """LLaMA's vocabulary from ``tokenizer.model``, or from a folder that has it.

    WeightsError where it is not there or is no SentencePiece model with a start, an end and an unknown token.
    """
    from sentencepiece import SentencePieceProcessor

    file = Path(path) / "tokenizer.model" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise WeightsError(f"{file}: not found; the tokenizer of LLaMA is the file tokenizer.model of its release")
    try:
        model: Any = SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{file}: not a SentencePiece model ({error}); expected tokenizer.model") from None
    start, end, unknown = model.bos_id(), model.eos_id(), model.unk_id()
    if min(start, end, unknown) < 0:
        raise WeightsError(f"{file}: no start, end or unknown token; expected the tokenizer the model was trained with")
    return Vocabulary(model.encode, start, end, unknown, model.vocab_size(), lambda ids: model.decode(list(ids)))


def absent(tower: str, expected: str) -> TowerError:
    """The error for text asked of a full-size tower that was created without its vocabulary."""
    return TowerError(
        f"tower {tower}: text needs a vocabulary, which does not ship; create it with tokenizer=<{expected}>"
    )


def _special(vocab: dict[str, int], token: str, path: str | Path) -> int:
    if token not in vocab:
        raise WeightsError(
            f"{path}: no token {token!r} among {len(vocab)}; expected the vocabulary the model was trained with"
        )
    return vocab[token]


def _bpe_from_folder(folder: Path, what: str) -> tuple[dict[str, int], Any]:
    files = folder / "vocab.json", folder / "merges.txt"
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{file}: not found; {what} is a folder with vocab.json and merges.txt")
    lines = files[1].read_text(encoding="utf-8").splitlines()
    return json.loads(files[0].read_text(encoding="utf-8")), _pairs(lines, files[1])


def _bpe_from_gzip(file: Path) -> tuple[dict[str, int], Any]:
    try:
        lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file}: not a gzip text file ({error}); expected bpe_simple_vocab_16e6.txt.gz") from None
    merges = _pairs(lines, file)[:CLIP_MERGES]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def _pairs(lines: list[str], file: Path) -> list[tuple[str, str]]:
    # The first line is a version comment where it does not hold exactly two pieces or starts so.
    body = lines[1:] if lines and ("version" in lines[0] or len(lines[0].split()) != 2) else lines
    pairs = []
    for number, line in enumerate(body, start=1 + len(lines) - len(body)):
        pieces = line.split()
        if not pieces:
            continue
        if len(pieces) != 2:
            raise WeightsError(f"{file}, line {number}: {len(pieces)} pieces; a BPE merge has 2")
        pairs.append((pieces[0], pieces[1]))
    return pairs


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level BPE files, in the order of CLIP's first 256 ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
