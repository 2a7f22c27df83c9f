"""Corruptions: each is what its definition says, a pure function of name, parameters and key, and refuses what makes no sense."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avcl_core.data.corruptions import KINDS, LIST, parse_corruption, parse_corruptions
from avcl_core.errors import ConfigError

BOTH = ("visual", "audio")


def sample(frames=4, size=32, rate=2000, seed=0):
    rng = np.random.default_rng(seed)
    loud = np.array([0.9, 0.01, 0.0, 0.2])[:frames, None]
    return {
        "visual": rng.integers(0, 256, (frames, size, size, 3), dtype=np.uint8),
        "audio": (loud * rng.uniform(-1, 1, (frames, rate))).astype(np.float32),
        "question": np.array([1, 2]),
    }


def changed(text, raw, key="key"):
    return parse_corruption(text)(raw, key)


@settings(max_examples=25, deadline=None)
@given(st.floats(-20, 40), st.integers(0, 5), st.text(min_size=1, max_size=5))
def test_noise_has_the_given_ratio_to_the_power_of_the_clip(snr, seed, key):
    raw = sample(seed=seed)
    noise = changed(f"audio_noise:{snr!r}", raw, key).inputs["audio"].astype(np.float64) - raw["audio"]
    power = np.square(raw["audio"].astype(np.float64)).mean()
    assert 10 * np.log10(power / np.square(noise).mean()) == pytest.approx(snr, abs=1e-2)


def test_noise_is_white_gaussian_and_equally_strong_in_loud_and_quiet_seconds():
    raw = sample(rate=16000)
    noise = changed("audio_noise:0", raw).inputs["audio"].astype(np.float64) - raw["audio"]
    each = noise.std(1)
    assert each.max() / each.min() < 1.05
    standard = (noise / noise.std()).ravel()
    assert (standard**4).mean() == pytest.approx(3, abs=0.1), "kurtosis of a Gaussian"
    spectrum = np.square(np.abs(np.fft.rfft(standard)))[1:-1]
    quarters = [part.mean() for part in np.array_split(spectrum, 4)]
    assert max(quarters) / min(quarters) < 1.1, "as much power in every quarter of the band"


def test_a_silent_clip_stays_silent():
    raw = {**sample(), "audio": np.zeros((4, 2000), np.float32)}
    heard = changed("audio_noise:0", raw).inputs["audio"]
    assert heard.dtype == np.float32
    assert not heard.any()


@pytest.mark.parametrize(("size", "share"), [(64, 0.05), (128, 0.03), (64, 0.1)])
def test_blur_has_the_given_width_relative_to_the_edge(size, share):
    step = np.zeros((2, size, size, 3), np.uint8)
    step[:, :, size // 2 :] = 255
    blurred = changed(f"frame_blur:{share}", {"visual": step}).inputs["visual"]
    assert blurred.shape == step.shape
    assert blurred.dtype == np.uint8
    kernel = np.diff(blurred[1, size // 2, :, 0].astype(float)) / 255
    places = np.arange(len(kernel))
    mean = (kernel * places).sum()
    assert np.sqrt((kernel * (places - mean) ** 2).sum()) == pytest.approx(share * size, rel=0.06)
    assert kernel.sum() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 1.0])
def test_occlusion_covers_the_fraction_at_one_place_of_the_clip_in_its_mean_colour(share):
    raw = sample(size=64)
    raw["visual"][raw["visual"] == 127] = 0
    raw["visual"][..., 1] //= 4
    found = changed(f"frame_occlusion:{share}", raw).inputs["visual"]
    hidden = (found == np.rint(raw["visual"].mean((0, 1, 2)))).all(-1)
    covered = hidden.all(0)
    assert covered.mean() == pytest.approx(share, abs=1 / 64)
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    assert covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "a rectangle"
    assert abs(len(rows) - len(columns)) <= 1, "of the frame's proportions"
    assert np.array_equal(found[:, ~covered], raw["visual"][:, ~covered]), "nothing else changes"


def test_places_and_seconds_differ_between_samples_and_are_spread():
    raw = sample(size=64)

    def place(key):
        hidden = (changed("frame_occlusion:0.25", raw, key).inputs["visual"] != raw["visual"]).any((0, 3))
        return int(np.flatnonzero(hidden.any(1))[0]), int(np.flatnonzero(hidden.any(0))[0])

    assert len({place(f"k{i}") for i in range(20)}) > 15
    gone = [
        int(np.flatnonzero(~changed("missing_segments:audio:1", raw, f"k{i}").present["audio"])[0]) for i in range(60)
    ]
    assert sorted(set(gone)) == [0, 1, 2, 3]


def test_a_missing_modality_is_denied_and_its_input_left_alone():
    raw = sample()
    found = changed("missing:vision", raw)
    assert set(found.present) == {"visual"}
    assert found.present["visual"].shape == ()
    assert not found.present["visual"]
    assert all(found.inputs[name] is raw[name] for name in raw)


@pytest.mark.parametrize(
    ("which", "frames", "left"),
    [("1", 10, 9), ("3", 10, 7), ("0.3", 10, 7), ("0.25", 5, 4), ("0.5", 5, 2), ("1.0", 5, 0), ("0.01", 5, 4)],
)
def test_a_number_or_fraction_of_drawn_seconds_is_missing(which, frames, left):
    raw = {"audio": np.zeros((frames, 10), np.float32)}
    present = changed(f"missing_segments:audio:{which}", raw).present["audio"]
    assert present.dtype == bool
    assert (len(present), present.sum()) == (frames, left)


def test_a_given_second_is_missing_in_every_sample():
    raw = sample()
    for key in "abc":
        assert changed("missing_segments:visual:@3", raw, key).present["visual"].tolist() == [True, True, True, False]


@pytest.mark.parametrize("text", [*LIST, "missing_segments:audio:0.5", "missing_segments:visual:@2"])
def test_the_same_key_gives_the_same_bits_another_key_others_and_the_input_is_never_touched(text):
    raw = sample()
    before = {name: value.copy() for name, value in raw.items()}
    one, again, other = changed(text, raw), changed(text, raw), changed(text, raw, "another")
    for name in raw:
        assert np.array_equal(one.inputs[name], again.inputs[name])
        assert np.array_equal(raw[name], before[name])
    assert {n: p.tolist() for n, p in one.present.items()} == {n: p.tolist() for n, p in again.present.items()}
    touched = parse_corruption(text).modality
    assert all(one.inputs[name] is raw[name] for name in raw if name != touched)
    if text.split(":")[0] in ("audio_noise", "frame_occlusion"):
        assert not np.array_equal(one.inputs[touched], other.inputs[touched])


def test_a_read_only_input_is_good_enough():
    raw = sample()
    for value in raw.values():
        value.setflags(write=False)
    for text in LIST:
        changed(text, raw)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("audio_noise:10.0", "audio_noise:10"),
        ("audio_noise:-5", "audio_noise:-5"),
        ("audio_noise:1.23456789", "audio_noise:1.23456789"),
        ("frame_blur:5e-2", "frame_blur:0.05"),
        ("missing:vision", "missing:visual"),
        ("missing_segments:audio:0.30", "missing_segments:audio:0.3"),
        ("missing_segments:vision:@03", "missing_segments:visual:@3"),
    ],
)
def test_text_form_is_one_for_all_ways_to_write_it(text, canonical):
    corruption = parse_corruption(text)
    assert corruption.text == canonical
    assert parse_corruption(canonical) == corruption


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("audio_nois:10", "did you mean 'audio_noise'"),
        ("blur:0.1", "'frame_blur'"),
        ("audio_noise", "found 0 parameters; expected audio_noise:"),
        ("audio_noise:10:3", "found 2 parameters"),
        ("audio_noise:loud", "'loud' is no number"),
        ("audio_noise:nan", "out of range"),
        ("audio_noise:inf", "out of range"),
        ("frame_blur:0", "out of range"),
        ("frame_occlusion:1.5", "out of range"),
        ("frame_occlusion:-0.1", "out of range"),
        ("missing:smell", "modality 'smell': unknown"),
        ("missing:audoi", "did you mean 'audio'"),
        ("missing_segments:audio", "found 1 parameters"),
        ("missing_segments:audio:0", "'0' is no whole number of at least 1"),
        ("missing_segments:audio:@-1", "'-1' is no whole number of at least 0"),
        ("missing_segments:audio:0.0", "out of range"),
        ("missing_segments:audio:²", "no whole number"),
        ("", "unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_corruption(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lists_take_brackets_clean_and_the_shipped_one_each_entry_once():
    texts = [c.text for c in parse_corruptions("[clean, audio_noise:10.0, standard, 'audio_noise:-5']", BOTH)]
    assert texts == ["audio_noise:10", *(t for t in LIST if t != "audio_noise:10"), "audio_noise:-5"]
    assert parse_corruptions("clean", BOTH) == ()
    assert {c.modality for c in parse_corruptions("standard", ("audio",))} == {"audio"}
    assert {text.split(":")[0] for text in LIST} == set(KINDS), "the shipped list has every kind"
    for empty in ("", "[]", " [ ] "):
        with pytest.raises(ConfigError, match="is empty"):
            parse_corruptions(empty, BOTH)


def test_what_does_not_fit_the_samples_is_refused():
    with pytest.raises(ConfigError, match="the run does not use audio; it uses visual"):
        parse_corruption("audio_noise:10").check(("visual",), 10)
    parse_corruption("missing_segments:audio:10").check(BOTH, 10)
    parse_corruption("missing_segments:audio:@9").check(BOTH, 10)
    with pytest.raises(ConfigError, match=r"the clips have 10 seconds$"):
        parse_corruption("missing_segments:audio:11").check(BOTH, 10)
    with pytest.raises(ConfigError, match="the clips have 10 seconds; the last is @9"):
        parse_corruption("missing_segments:audio:@10").check(BOTH, 10)
