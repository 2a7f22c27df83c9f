"""Hidden log-mel entries: zero behind the batch norm, in the place and the segment they were meant for, and nowhere else."""

import pytest
import torch


def fold(tower, normed):
    """[B, 1, frames, mels] to tokens, by the library's own steps behind the batch norm."""
    return tower.encoder.patch_embed(tower.encoder.reshape_mel2img(normed))


@pytest.mark.parametrize("name", ["htsat", "clap"])
def test_hidden_entries_are_zero_behind_the_batch_norm(tiny, sample, name):
    tower = tiny(name)
    features = tower.frontend(sample(name))
    hide = torch.zeros(2, *features.shape[2:], dtype=torch.bool)
    hide[0, 10:40] = True
    hide[1, :, 3:5] = True
    norm = tower.encoder.batch_norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    normed = (features - norm.running_mean) * scale + norm.bias
    expected = fold(tower, normed * ~hide.unsqueeze(1))
    assert float(norm.bias.abs().min()) > 0, "a statistic that matters"
    torch.testing.assert_close(tower.embed(features, hide=hide)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["htsat", "clap"])
def test_a_mask_touches_its_own_segment_alone(tiny, sample, name):
    tower = tiny(name)
    features = tower.frontend(sample(name))
    plain, _ = tower.embed(features)
    hide = torch.zeros(2, *features.shape[2:], dtype=torch.bool)
    assert torch.equal(tower.embed(features, hide=hide)[0], plain), "nothing hidden changes no bit"
    hide[1, 50:60] = True
    masked, _ = tower.embed(features, hide=hide)
    assert torch.equal(masked[0], plain[0])
    changed = (masked[1] != plain[1]).any(-1).unflatten(0, (tower.subs[0].grid)).any(0)
    assert changed.any()
    assert not changed.all()
    everything, _ = tower.embed(features, hide=torch.ones_like(hide))
    assert torch.equal(everything[0], everything[1]), "with all hidden, no sound is left"


def test_a_mask_of_another_shape_or_type_is_refused(tiny):
    tower = tiny("htsat")
    features = torch.zeros(2, 1, 101, 16)
    for hide in (
        torch.zeros(2, 16, 101, dtype=torch.bool),
        torch.zeros(1, 101, 16, dtype=torch.bool),
        torch.zeros(2, 101, 16),
    ):
        with pytest.raises(ValueError, match=r"hide is torch\.\w+ \(.*\); expected torch\.bool \(2, 101, 16\)"):
            tower.embed(features, hide=hide)


@pytest.mark.parametrize("name", ["swin_v2", "clip_vit", "resnet18", "resnet50", "pvt_v2", "vggish", "beats"])
def test_other_towers_have_nothing_to_hide(tiny, sample, name):
    tower = tiny(name)
    features = tower.frontend(sample(name))
    assert tower.info.spectrogram is None
    assert torch.equal(tower.embed(features)[0], tower.embed(features, hide=None)[0])
    with pytest.raises(ValueError, match=f"{name}: hide zeroes entries of a normalised log-mel"):
        tower.embed(features, hide=torch.zeros(len(features), 4, 4, dtype=torch.bool))


@pytest.mark.parametrize(("name", "expected"), [("htsat", (256, 16)), ("clap", (256, 16))])
def test_a_tower_says_how_large_its_spectrogram_is(tiny, name, expected):
    tower = tiny(name)
    assert tower.info.spectrogram == expected
    tower.embed(torch.zeros(1, 1, *expected))
    with pytest.raises(ValueError, match="at most 256"):
        tower.embed(torch.zeros(1, 1, 257, 16))
