"""The language tower is the library's LLaMA, whatever is padded, kept or put between the words."""

import pytest
import torch

from shared_backbones.dialogue import PLACES
from shared_backbones.language import UNUSED, Cache
from shared_backbones.registry import build


@pytest.fixture(scope="module")
def tower():
    return build("av_llama", "tiny", {}, seed=0).double()


def prompts(lengths, side="right"):
    """Random words of the given lengths, filled up on one side."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.full((len(lengths), max(lengths)), UNUSED)
    for row, length in enumerate(lengths):
        words = torch.randint(0, 259, (length,), generator=generator)
        ids[row, :length] = words
        if side == "left":
            ids[row] = ids[row].roll(max(lengths) - length)
    return ids


@torch.no_grad()
def walked(tower, rows, valid, cache=None, **site):
    tokens, aux = tower.enter(rows, valid, cache)
    for sub in tower.subs:
        tokens = tokens + tower.run(sub, tokens, aux, **(site if sub.kind == "attn" else {}))
    return tower.final(tokens)


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_are_the_librarys_whatever_is_filled_up(tower, side):
    ids = prompts([7, 12, 1], side)
    there = ids != UNUSED
    with torch.no_grad():
        found = tower.logits(tower.encode(ids))
        positions = (there.cumsum(1) - 1).clamp_min(0)
        expected = tower.net.decoder(
            input_ids=ids.clamp_min(0), attention_mask=there.long(), position_ids=positions
        ).logits
    torch.testing.assert_close(found[there], expected[there], atol=1e-10, rtol=0)
    for row, length in enumerate([7, 12, 1]):
        alone = tower.logits(tower.encode(ids[row : row + 1][:, there[row]]))
        torch.testing.assert_close(found[row][there[row]], alone[0], atol=1e-10, rtol=0)
        assert len(alone[0]) == length


def test_kept_positions_give_what_the_whole_sequence_gives(tower):
    ids = prompts([5, 9], "left")
    there = ids != UNUSED
    rows = tower.words(ids.clamp_min(0))
    whole = walked(tower, rows, there)
    for cuts in ((9,), (6, 3), (4, 1, 1, 3)):
        cache, parts = Cache(torch.zeros(2, 0, dtype=torch.bool)), []
        for part, valid in zip(rows.split(cuts, 1), there.split(cuts, 1), strict=True):
            parts.append(walked(tower, part, valid, cache))
        torch.testing.assert_close(torch.cat(parts, 1)[there], whole[there], atol=1e-10, rtol=0)
    assert cache.valid.shape == (2, 9)


def test_rows_of_a_prefix_have_no_position_and_are_seen_by_all(tower):
    ids = prompts([6, 4])
    there = ids != UNUSED
    rows = tower.words(ids.clamp_min(0))
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 2, 3, 128, generator=generator, dtype=torch.float64)
    one = walked(tower, rows, there, prefix=(keys, values))
    turned = walked(tower, rows, there, prefix=(keys[:, [2, 0, 1]], values[:, [2, 0, 1]]))
    torch.testing.assert_close(one, turned, atol=1e-10, rtol=0)
    gap = (one - walked(tower, rows, there)).abs().amax((0, 2))
    assert bool((gap > 1e-4).all()), "every position sees the rows, the first one too"


def test_media_stand_where_the_prompt_has_a_place_for_them(tower):
    generator = torch.Generator().manual_seed(2)
    frames = torch.randn(2, 3, 4, 64, generator=generator, dtype=torch.float64)
    sound = torch.randn(2, 2, 5, 64, generator=generator, dtype=torch.float64)
    valid = torch.ones(2, 2, 5, dtype=torch.bool)
    valid[0, 1] = False
    valid[1, 1, 3:] = False
    media = {"video": tower.connect("visual", frames), "audio": tower.connect("audio", sound, valid)}
    assert media["video"].tokens.shape == (2, 4, 128)
    assert media["audio"].valid.sum(1).tolist() == [8, 16]
    ids = torch.tensor([[9, PLACES["video"], 8, PLACES["audio"], 7], [6, PLACES["audio"], UNUSED, UNUSED, UNUSED]])
    for side in ("left", "right"):
        rows, there = tower.splice(ids, media, side)
        assert there.sum(1).tolist() == [15, 17]
        assert there[0].tolist() == ([False] * 2 + [True] * 15 if side == "left" else [True] * 15 + [False] * 2)
        first, second = rows[0][there[0]], rows[1][there[1]]
        words = tower.words(torch.tensor([9, 8, 7, 6]))
        torch.testing.assert_close(first[[0, 5, 14]], words[:3])
        torch.testing.assert_close(first[1:5], media["video"].tokens[0])
        torch.testing.assert_close(first[6:14], media["audio"].tokens[0, :8])
        torch.testing.assert_close(second, torch.cat((words[3:], media["audio"].tokens[1])))
    with pytest.raises(ValueError, match="the place of video; media given: audio"):
        tower.splice(ids, {"audio": media["audio"]}, "left")


def test_what_is_no_sound_is_not_heard(tower):
    generator = torch.Generator().manual_seed(3)
    sound = torch.randn(1, 1, 6, 64, generator=generator, dtype=torch.float64)
    valid = torch.tensor([[[True, True, True, True, False, False]]])
    spoilt = sound.masked_fill(~valid.unsqueeze(-1), 50.0)
    heard = tower.connect("audio", sound, valid).tokens
    torch.testing.assert_close(tower.connect("audio", spoilt, valid).tokens, heard)
    torch.testing.assert_close(tower.connect("audio", sound[:, :, :4]).tokens, heard, atol=1e-10, rtol=0)
    assert float((tower.connect("audio", sound).tokens - heard).detach().abs().max()) > 1e-3


def test_frames_are_averaged_behind_the_projectors_bend(tower):
    generator = torch.Generator().manual_seed(4)
    frames = torch.randn(1, 3, 4, 64, generator=generator, dtype=torch.float64)
    net = tower.net.visual
    each = [net.leave(torch.nn.functional.gelu(net.enter(frames[:, t]))) for t in range(3)]
    found = tower.connect("visual", frames).tokens
    torch.testing.assert_close(found, torch.stack(each).mean(0), atol=1e-12, rtol=0)
    before = net.leave(torch.nn.functional.gelu(net.enter(frames.mean(1))))
    assert float((found - before).detach().abs().max()) > 1e-3


def test_ids_that_are_no_words_are_refused(tower):
    with pytest.raises(ValueError, match="id 259; expected words 0 to 258"):
        tower.frontend(torch.tensor([[3, 259]]))
    with pytest.raises(ValueError, match="id -400"):
        tower.frontend(torch.tensor([[PLACES["video"]]]))
    with pytest.raises(ValueError, match="expected integer ids"):
        tower.frontend(torch.zeros(1, 3))


def test_the_full_size_has_the_published_numbers_of_parameters():
    net = build("av_llama", "full", {}, device="meta").net

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(net.decoder) == 6_738_415_616
    assert count(net.decoder.lm_head) == 131_072_000
    assert [count(layer.mlp) for layer in net.decoder.model.layers] == [135_266_304] * 32
    assert round(count(net.audio.qformer) / 1e6, 1) == 99.2
    assert net.audio.query_tokens.shape == (1, 50, 768)
