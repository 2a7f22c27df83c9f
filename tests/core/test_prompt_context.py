"""Class prompts with learned context: the frozen encoder's own features for real words, gradient to the context alone."""

import pytest
import torch

from avcl_core.errors import ConfigError
from avcl_core.prompts.context import ClassPrompts, LearnedContext, spoken
from shared_backbones.registry import build

NAMES = ("Church_bell", "a", "Race car, auto racing")


@pytest.fixture(scope="module")
def tower():
    return build("clip_vit", "tiny", {})


@pytest.mark.parametrize("words", ["a photo of a ", "xy"])
def test_context_of_real_words_gives_the_encoders_own_features(tower, words):
    """Tiny CLIP reads bytes: its context has one vector for each character."""
    text, tokens = tower.text, len(words)
    context = text.token_embeddings(text.tokenize([words])[:, 1 : 1 + tokens])[0]
    with torch.no_grad():
        found = ClassPrompts(text, NAMES, tokens).encode(context)
    expected = text.encode([f"{words}{spoken(name)}." for name in NAMES])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_context_alone_and_all_of_it(tower):
    context = LearnedContext(4, tower.text.width)
    ClassPrompts(tower.text, NAMES, 4).encode(context.vectors).square().sum().backward()
    assert bool((context.vectors.grad.abs().sum(1) > 0).all())
    assert [name for name, p in tower.named_parameters() if p.grad is not None] == []


def test_prompts_cut_behind_the_longest_end_are_those_of_full_length(tower):
    text, context = tower.text, LearnedContext(4, tower.text.width).vectors.detach()
    prompts = ClassPrompts(text, NAMES, 4)
    assert prompts.ids.shape[1] == 4 + 2 + len("Race car, auto racing.")
    full = torch.nn.functional.pad(prompts.ids, (0, 77 - prompts.ids.shape[1]), value=text.vocabulary.pad)
    words = text.token_embeddings(full)
    words = torch.cat([words[:, :1], context.expand(len(NAMES), -1, -1), words[:, 5:]], 1)
    with torch.no_grad():
        torch.testing.assert_close(prompts.encode(context), text.forward_embeddings(words, full), atol=1e-5, rtol=1e-5)


def test_ids_are_copied_to_a_device_once(monkeypatch):
    text = build("clip_vit", "tiny", {}, device="meta").text
    prompts, seen, forward = ClassPrompts(text, NAMES, 4), [], text.forward_embeddings
    monkeypatch.setattr(text, "forward_embeddings", lambda words, ids: (seen.append(ids), forward(words, ids))[1])
    context = torch.empty(4, text.width, device="meta")
    assert prompts.encode(context).shape == prompts.encode(context).shape == (len(NAMES), text.joint_width)
    assert seen[0].device.type == "meta"
    assert seen[0] is seen[1]
    assert prompts.ids.device.type == "cpu"


def test_a_first_context_is_drawn_small():
    vectors = LearnedContext(400, 64).vectors
    assert vectors.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(vectors.mean().item()) < 1e-3


def test_what_is_too_long_is_refused(tower):
    ClassPrompts(tower.text, ["x" * 60], 77 - 63)
    with pytest.raises(ConfigError, match=r"15 context vectors and the longest class name need 78 tokens"):
        ClassPrompts(tower.text, ["x" * 60], 78 - 63)


def test_underscores_are_blanks():
    assert spoken("Baby_cry_infant_cry") == "Baby cry infant cry"


def test_texts_are_tokens_on_the_cpu_whatever_the_default_device(tower):
    """Sizes are counted on the meta device, where nothing could say how long a text is."""
    with torch.device("meta"):
        prompts = ClassPrompts(tower.text, NAMES, 4)
    assert prompts.ids.device.type == "cpu"
    assert torch.equal(prompts.ids, ClassPrompts(tower.text, NAMES, 4).ids)
