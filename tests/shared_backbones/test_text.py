"""The text sides: equal to the library's, open to learned context, and clear about vocabularies that do not ship."""

import gzip
import json

import pytest
import torch

from shared_backbones import TowerError, WeightsError, create
from shared_backbones.registry import build
from shared_backbones.vocabulary import byte_vocabulary, clip_vocabulary, roberta_vocabulary

TEXTS = ["a photo of a dog.", "The sounds of a church bell", "é"]


def test_clip_text_equals_the_library(tiny):
    tower = tiny("clip_vit")
    ids = tower.text.tokenize(TEXTS)
    assert ids.shape == (3, 77)
    with torch.no_grad():
        model = tower.net.text_model
        expected = tower.net.text_projection(model(input_ids=ids).pooler_output)
    torch.testing.assert_close(tower.text.encode(TEXTS), expected, rtol=1e-5, atol=1e-5)
    assert tower.text.encode(TEXTS).shape == (3, tower.info.joint_width)


def test_clap_text_equals_the_library(tiny):
    tower = tiny("clap")
    ids = tower.text.tokenize(TEXTS)
    with torch.no_grad():
        pooled = tower.net.text_model(input_ids=ids, attention_mask=(ids != 1).long()).pooler_output
        expected = tower.net.text_projection(pooled)
    torch.testing.assert_close(tower.text.encode(TEXTS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["clap", "clip_vit"])
def test_a_text_does_not_depend_on_its_neighbours(name, tiny):
    text = tiny(name).text
    torch.testing.assert_close(text.encode(TEXTS)[:1], text.encode(TEXTS[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["clap", "clip_vit"])
def test_projections_equal_the_library(name, tiny, sample):
    tower, x = tiny(name), sample(name)
    final = tower.encode(x)
    with torch.no_grad():
        if name == "clip_vit":
            expected = tower.net.visual_projection(tower.net.vision_model(x).pooler_output)
        else:
            expected = tower.net.audio_projection(final.mean(1))
    torch.testing.assert_close(tower.project(final), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["clap", "clip_vit"])
def test_learned_context_takes_gradients_through_the_frozen_text_side(name, tiny):
    tower = tiny(name)
    ids = tower.text.crop(tower.text.tokenize(["xxxx dog.", "xxxx church bell."]))
    plain = tower.text.token_embeddings(ids)
    context = torch.randn(4, tower.text.width, requires_grad=True)
    mixed = torch.cat((plain[:, :1], context.expand(2, -1, -1), plain[:, 5:]), 1)
    joint = tower.text.forward_embeddings(mixed, ids)
    joint.square().sum().backward()
    assert (context.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None for p in tower.parameters())
    torch.testing.assert_close(
        tower.text.forward_embeddings(plain, ids), tower.text.encode(["xxxx dog.", "xxxx church bell."])
    )


def test_byte_vocabulary_is_injective_and_leaves_the_special_ids_alone():
    vocabulary = byte_vocabulary(start=0, end=2, pad=1)
    text = "".join(chr(c) for c in range(32, 1000))
    ids = vocabulary.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert max(ids) < vocabulary.size == 259
    assert len(set(ids)) == len(set(text.lower().encode()))
    assert vocabulary.encode("Dog") == vocabulary.encode("dog")


def test_full_text_without_a_vocabulary_says_what_is_missing():
    for name, expected in (("clip_vit", r"bpe_simple_vocab_16e6\.txt\.gz"), ("clap", r"RoBERTa's vocab\.json")):
        tower = build(name, "full", {}, device="meta")
        with pytest.raises(TowerError, match=rf"tokenizer=<.*{expected}"):
            tower.text.encode(["a dog"])


def test_too_long_text_is_refused(tiny):
    with pytest.raises(ValueError, match="at most 77"):
        tiny("clip_vit").text.encode(["a" * 76])
    assert tiny("clip_vit").text.encode(["a" * 75]).shape == (1, 32)


def test_tower_without_text(tiny):
    tower = tiny("swin_v2")
    assert tower.text is None
    with pytest.raises(TypeError, match="no text side"):
        tower.project(torch.zeros(1, 4, 128))


def byte_letters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return {b: chr(b) for b in printable} | {
        b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in printable)
    }


MERGES = ["d o", "do g</w>", "c a", "ca t</w>", "do g"]


def test_clip_vocabulary_from_the_published_gzip(tmp_path):
    """Ids: 256 letters, 256 word-final letters, merges in order, start, end (the published file holds 48,894 used merges)."""
    file = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    file.write_bytes(gzip.compress(("#version: 0.2\n" + "\n".join(MERGES) + "\n").encode()))
    vocabulary = clip_vocabulary(file)
    assert (vocabulary.size, vocabulary.start, vocabulary.end) == (512 + 5 + 2, 517, 518)
    letters = list(byte_letters().values())
    at = {letter: i for i, letter in enumerate(sorted(letters, key=lambda c: (ord(c) >= 256, ord(c))))}
    assert vocabulary.encode("Dog  cat") == [513, 515]
    assert vocabulary.encode("dogs") == [516, 256 + at["s"]]
    assert vocabulary.encode("x!") == [256 + at["x"], 256 + at["!"]]
    assert vocabulary.encode("é") == [at["Ã"], 256 + at["©"]]


def test_clip_vocabulary_from_a_folder_equals_the_gzip(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(("#version: 0.2\n" + "\n".join(MERGES)).encode()))
    letters = sorted(byte_letters().values(), key=lambda c: (ord(c) >= 256, ord(c)))
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(m.split()) for m in MERGES)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    first, second = clip_vocabulary(tmp_path / "a.gz"), clip_vocabulary(tmp_path)
    for text in ("a dog's cat, 23 times!", "naïve Ω", "dog."):
        assert first.encode(text) == second.encode(text)
    assert (first.start, first.end, first.size) == (second.start, second.end, second.size)


def roberta_folder(folder, special=("<s>", "<pad>", "</s>", "<unk>", "<mask>")):
    letters = byte_letters()
    merges = ["Ġ d", "Ġd o", "Ġdo g", "d o", "do g"]
    tokens = [*special, *letters.values(), *("".join(m.split()) for m in merges)]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return {t: i for i, t in enumerate(tokens)}


def test_roberta_vocabulary(tmp_path):
    ids = roberta_folder(tmp_path)
    vocabulary = roberta_vocabulary(tmp_path)
    assert (vocabulary.start, vocabulary.pad, vocabulary.end) == (0, 1, 2)
    assert vocabulary.encode("dog dog") == [ids["dog"], ids["Ġdog"]]
    assert vocabulary.encode("Dog") == [ids["D"], ids["o"], ids["g"]]


def test_broken_vocabularies(tmp_path):
    with pytest.raises(WeightsError, match=r"vocab\.json: not found"):
        clip_vocabulary(tmp_path)
    with pytest.raises(WeightsError, match=r"vocab\.json: not found"):
        roberta_vocabulary(tmp_path / "none")
    (tmp_path / "x.gz").write_text("no gzip")
    with pytest.raises(WeightsError, match="not a gzip text file"):
        clip_vocabulary(tmp_path / "x.gz")
    (tmp_path / "y.gz").write_bytes(gzip.compress(b"#version: 0.2\nd o\nd o g\n"))
    with pytest.raises(WeightsError, match=r"y\.gz, line 3: 3 pieces"):
        clip_vocabulary(tmp_path / "y.gz")
    roberta_folder(tmp_path, special=("<s>", "<unk>", "</s>"))
    with pytest.raises(WeightsError, match="no token '<pad>'"):
        roberta_vocabulary(tmp_path)


def test_vocabulary_of_another_model_is_refused(tmp_path):
    roberta_folder(tmp_path)
    with pytest.raises(WeightsError, match="tokenizer has 266 tokens, the text encoder 50265"):
        build("clap", "full", {"tokenizer": tmp_path}, device="meta")
    assert create("clap", size="tiny", pretrained=False).text.vocabulary.size == 259
