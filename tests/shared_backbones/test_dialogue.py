"""Prompts as ids: the template once, each piece tokenised by itself, places between them; answers come back as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from shared_backbones.dialogue import BARE, PLACES, VICUNA, Dialogue
from shared_backbones.errors import TowerError, WeightsError
from shared_backbones.registry import build
from shared_backbones.vocabulary import byte_vocabulary, sentencepiece_vocabulary

SENTENCES = (
    "Where is the dog in this video?",
    "Which animal barks?",
    "A chat between a curious user",
    "USER: ASSISTANT:",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SentencePiece model of the kind that LLaMA has: BPE, bytes for what it does not know, unknown 0, start 1, end 2."""
    folder = tmp_path_factory.mktemp("llama")
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 40), model_prefix=str(folder / "tokenizer"), vocab_size=340,
        model_type="bpe", byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return folder


BYTES = Dialogue(BARE, byte_vocabulary(start=1, end=2, pad=0))


def test_every_piece_between_places_is_tokenised_by_itself(model):
    known = SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    dialogue = Dialogue(VICUNA, sentencepiece_vocabulary(model))
    ids = dialogue.prompt("<video>\n<audio>\nWhere is the dog?")
    first, rest = VICUNA.before, "\nWhere is the dog? ASSISTANT:"
    assert ids == [
        1, *known.encode(first), PLACES["video"], *known.encode("\n"), PLACES["audio"], *known.encode(rest)
    ]  # fmt: skip
    assert ids.count(1) == 1
    assert known.decode(known.encode(first)).strip().endswith("USER:")
    assert dialogue.question("<video>\n<audio>\nWhere is the dog?") == known.encode("Where is the dog?")


def test_a_prompt_and_its_answer_are_the_tokens_of_the_whole(model):
    """Words carry the space before them, so what is supervised is exactly what follows the prompt."""
    known = SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
    dialogue = Dialogue(VICUNA, sentencepiece_vocabulary(model))
    whole = known.encode(f"{VICUNA.before}Which animal barks? ASSISTANT: the dog")
    assert [*dialogue.prompt("Which animal barks?"), *dialogue.answer("the dog ")] == [1, *whole, 2]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x02"), min_size=1).filter(str.strip))
def test_answers_in_bytes_come_back(text):
    assert BYTES.read(BYTES.answer(text)) == text.strip().lower().encode().decode().strip()


def test_what_follows_the_end_is_not_read(model):
    for dialogue in (BYTES, Dialogue(VICUNA, sentencepiece_vocabulary(model))):
        assert dialogue.read([*dialogue.answer("the dog"), *dialogue.answer("barks")]) == "the dog"
        assert dialogue.read(dialogue.answer("the dog")[:-1]) == "the dog", "an answer that was cut off has no end"
        assert dialogue.read([dialogue.vocabulary.end]) == ""
        with pytest.raises(ValueError, match="empty answer"):
            dialogue.answer("  ")


def test_a_tokenizer_that_is_none_or_does_not_fit_is_refused(model, tmp_path):
    with pytest.raises(WeightsError, match=r"tokenizer\.model: not found"):
        sentencepiece_vocabulary(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"words")
    with pytest.raises(WeightsError, match="not a SentencePiece model"):
        sentencepiece_vocabulary(tmp_path)
    with pytest.raises(WeightsError, match="tokenizer has 340 tokens, the language model 32000"):
        build("av_llama", "full", {"tokenizer": model}, device="meta")
    with pytest.raises(TowerError, match="text needs a vocabulary"):
        _ = build("av_llama", "full", {}, device="meta").dialogue
    with pytest.raises(TowerError, match="size='tiny' reads bytes"):
        build("av_llama", "tiny", {"tokenizer": model})
