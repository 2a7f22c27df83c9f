"""SpecAugment's stripes: their widths and places against the stated distribution, one generator, segments on their own."""

import pytest
import torch

from avcl_core.augment import spec_augment, stripe_widths
from avcl_core.seeding import torch_generator


def lines(hidden):
    """Hidden frames [n, frames] and hidden bins [n, mels]: a stripe hides its line in full."""
    return hidden.all(2), hidden.all(1)


def runs(line):
    """Start and length of every run of hidden places of one segment."""
    edges = torch.diff(line.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    starts = (edges == 1).nonzero().flatten()
    return list(zip(starts.tolist(), ((edges == -1).nonzero().flatten() - starts).tolist(), strict=True))


def test_a_mask_is_two_stripes_of_time_and_two_of_frequency():
    hidden = spec_augment(400, 1001, 64, torch_generator("mask"))
    assert hidden.shape == (400, 1001, 64)
    assert hidden.dtype == torch.bool
    times, bins = lines(hidden)
    assert torch.equal(hidden, times.unsqueeze(2) | bins.unsqueeze(1)), "nothing is hidden beside whole lines"
    for line, bound in ((times, 64), (bins, 8)):
        counts = [len(runs(row)) for row in line]
        assert max(counts) == 2
        assert int(line.sum(1).max()) <= 2 * (bound - 1)
        single = [length for row in line for _, length in runs(row) if len(runs(row)) == 2]
        assert max(single) == bound - 1, "the longest stripe occurs and none is longer"


def test_widths_and_starts_are_uniform():
    """One stripe each, wide enough samples: mean and ends of both distributions."""
    frames, bound, count = 40, 8, 20000
    hidden = spec_augment(count, frames, 5, torch_generator("uniform"), widths=(bound, 1), stripes=1)
    assert not hidden.all(1).any(), "a bound of one hides nothing"
    line = hidden[:, :, 0]
    width = line.sum(1)
    assert torch.bincount(width, minlength=bound).tolist() == pytest.approx([count / bound] * bound, rel=0.1)
    for w in (1, bound - 1):
        start = line[width == w].int().argmax(1)
        places = frames - w
        assert int(start.max()) == places - 1, (
            "the last frame stays: the usual implementation's start is below size - width"
        )
        expected = float((width == w).sum()) / places
        found = torch.bincount(start, minlength=places).float()
        assert float(((found - expected) ** 2 / expected).sum()) < places + 4 * (2 * places) ** 0.5


def test_a_mask_is_a_function_of_the_generator_alone():
    def draw(name, count=3):
        return spec_augment(count, 201, 16, torch_generator(name), widths=(16, 2))

    torch.manual_seed(1)
    first = draw("a")
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert torch.equal(first, draw("a"))
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"
    assert not torch.equal(first, draw("b"))
    assert not torch.equal(first[0], first[1]), "segments are drawn on their own"


@pytest.mark.parametrize(
    ("spectrogram", "expected"), [((1024, 64), (64, 8)), ((256, 16), (16, 2)), ((64, 16), (4, 2)), ((16, 4), (2, 2))]
)
def test_stripes_keep_their_part_of_the_spectrogram(spectrogram, expected):
    assert stripe_widths(spectrogram) == expected


@pytest.mark.parametrize("widths", [(21, 2), (0, 2), (2, 5)])
def test_stripes_that_do_not_fit_are_refused(widths):
    with pytest.raises(ValueError, match=r"SpecAugment: stripes below \d+ (frames|mels) in a log-mel of (20|4)"):
        spec_augment(1, 20, 4, torch_generator("fit"), widths=widths)
