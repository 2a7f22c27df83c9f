"""From the published folder to samples: where media are, what the masks become, and the error that each broken file gets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avcl_avs import plugin
from avcl_avs.dataset import MaskData
from avcl_avs.masks import read_masks, read_values, unpack
from avcl_core.data.prepare import prepare
from avcl_core.data.problems import MediaError
from avcl_core.data.verify import verify_source
from avcl_core.errors import DataError

SINGLE, MULTIPLE = Path("Single-source/s4_data"), Path("Multi-sources/ms3_data")
TRAIN = "train/race_car/aa_0_5000"


def truth(number: int) -> np.ndarray:
    mask = np.zeros((224, 224), dtype=bool)
    mask[10 : 30 + 10 * number, 40:141] = True
    return mask


def problems_of(root: Path, severity: str = "error", level="full") -> list[tuple[str, str, str]]:
    found = verify_source(plugin.layout(root), level)
    return sorted({(p.record, p.field, p.found) for p in found if p.severity == severity})


def test_published_folder_has_no_error(published):
    layout = plugin.layout(published)
    assert [clip.id for clip in layout.clips] == [
        "s4/aa_0_5000", "s4/bb_0_5000", "s4/cc_0_5000", "ms3/dd", "ms3/ee", "ms3/ff"
    ]  # fmt: skip
    assert [len(clip.extras[0].paths) for clip in layout.clips] == [1, 5, 5, 5, 5, 5]
    assert {p.field for p in layout.problems} == {"videos per split"}  # three videos are no AVSBench
    assert problems_of(published) == []
    assert sorted(layout.annotations) == ["ms3", "s4"]


def test_frames_and_masks_keep_their_order(published_prepared):
    assert published_prepared.quarantined == {}
    assert published_prepared.extras == ("masks",)
    assert published_prepared.extra("masks", "ms3/ee").shape == (5, 224, 28)
    for setting, key in (("s4", "s4/aa_0_5000"), ("ms3", "ms3/dd")):
        data = MaskData(published_prepared, setting, "clean").split("train")
        inputs, targets = data.inputs(key, None), data.targets(key)
        assert [round(float(frame.mean()) / 40) for frame in inputs["visual"]] == [1, 2, 3, 4, 5]
        assert inputs["audio"].shape == (5, 32000)
        assert np.abs(inputs["audio"]).max() == pytest.approx(0.3, abs=0.05)
        annotated = [True] + [setting == "ms3"] * 4
        assert targets["annotated"].tolist() == annotated
        for number, known in enumerate(annotated, start=1):
            expected = truth(number) if known else np.zeros((224, 224), bool)
            np.testing.assert_array_equal(targets["mask"][number - 1], expected)
        assert data.digest(key) == published_prepared.sample_digest(key)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_any_value_above_zero_is_foreground(tmp_path, mode):
    values = np.zeros((224, 224), np.uint8)
    values[3, :50], values[4, :60] = 1, 200
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0, 255, 0, 0] * 128)
    elif mode == "1":
        image = Image.fromarray(values > 0)
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * 200)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "m.png")
    bits = read_masks((tmp_path / "m.png",))
    assert bits.shape == (5, 224, 28)
    assert bits.dtype == np.uint8
    expected = np.zeros((5, 224, 224), bool)
    expected[0] = values > 0
    np.testing.assert_array_equal(unpack(bits), expected)


def rewrite(path: Path, size=(224, 224), mode="RGB") -> None:
    Image.new(mode, size).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FRAMES = SINGLE / "visual_frames" / TRAIN
MASKS = SINGLE / "gt_masks"
SOUND = SINGLE / "audio_wav" / f"{TRAIN}.wav"
BROKEN = {
    "frame missing": (lambda r: (r / FRAMES / "aa_0_5000_5.png").unlink(), "frames", "4"),
    "gap": (lambda r: (r / FRAMES / "aa_0_5000_3.png").unlink(), "frame numbering", "4 after 2"),
    "frame too many": (lambda r: rewrite(r / FRAMES / "aa_0_5000_6.png"), "frames", "6"),
    "frame size": (lambda r: rewrite(r / FRAMES / "aa_0_5000_2.png", (224, 200)), "frame size", "224×200 pixels"),
    "frame channels": (lambda r: rewrite(r / FRAMES / "aa_0_5000_2.png", mode="L"), "channels", "mode L"),
    "frame cut": (lambda r: cut(r / FRAMES / "aa_0_5000_2.png"), "image", ""),
    "mask missing": (lambda r: (r / MASKS / TRAIN / "aa_0_5000_1.png").unlink(), "mask", "no such file"),
    "mask too many": (lambda r: rewrite(r / MASKS / TRAIN / "aa_0_5000_2.png", mode="L"), "masks", "2"),
    "mask size": (lambda r: rewrite(r / MASKS / TRAIN / "aa_0_5000_1.png", (56, 56), "L"), "mask size", "56×56 pixels"),
    "mask mode": (lambda r: rewrite(r / MASKS / TRAIN / "aa_0_5000_1.png", mode="RGBA"), "mask", "mode RGBA"),
    "mask cut": (lambda r: cut(r / MASKS / TRAIN / "aa_0_5000_1.png"), "mask", ""),
    "sound cut": (lambda r: cut(r / SOUND), "length", ""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_media_are_named_and_quarantined(published, tmp_path, case):
    damage, field, found = BROKEN[case]
    damage(published)
    errors = problems_of(published)
    assert [(record, name) for record, name, _ in errors] == [("s4/aa_0_5000", field)] * len(errors)
    assert errors
    assert any(found in value for _, _, value in errors)
    prepared = prepare(plugin.layout(published), tmp_path / "prepared", frame_size=32, workers=1)
    assert set(prepared.quarantined) == {"s4/aa_0_5000"}
    with pytest.raises(MediaError, match=field):
        MaskData(prepared, "s4", "clean").split("train").targets("s4/aa_0_5000")


def test_mask_of_a_judged_frame_is_needed(published):
    (published / MULTIPLE / "gt_masks/val/ee/ee_4.png").unlink()
    assert problems_of(published) == [("ms3/ee", "mask", "no such file")]
    assert problems_of(published, level="fast") == [("ms3/ee", "masks", "no such file")]


def test_ids_without_media_and_media_without_ids_are_counted(published):
    for path in (published / MULTIPLE / "visual_frames" / "ff").iterdir():
        path.unlink()
    (published / MULTIPLE / "visual_frames" / "ff").rmdir()
    (published / SINGLE / "visual_frames/test/race_car/zz").mkdir()
    layout = plugin.layout(published)
    lost, spare = [
        next(p for p in layout.problems if text in p.found) for text in ("without media", "without annotation")
    ]
    assert lost.found == "1 ids without media: ms3/ff"
    assert lost.severity == "error"
    assert spare.found == "1 videos without annotation: zz"
    assert spare.severity == "warning"


def test_masks_with_further_values_are_counted(published):
    values = np.zeros((224, 224), np.uint8)
    values[:9], values[9] = 255, 7
    Image.fromarray(values).save(published / MULTIPLE / "gt_masks/val/ee/ee_2.png")
    (warning,) = [p for p in plugin.layout(published).problems if p.field == "values"]
    assert warning.severity == "warning"
    assert warning.found == "1 masks with further values: ee_2.png"
    assert (read_values(published / MULTIPLE / "gt_masks/val/ee/ee_2.png") > 0).sum() == 2240


def test_silent_sound_is_a_warning(published):
    import soundfile

    soundfile.write(published / SOUND, np.zeros(80000), 16000, subtype="PCM_16")
    assert ("s4/aa_0_5000", "samples", "only zeros") in problems_of(published, "warning")


@pytest.mark.parametrize(
    ("wave", "field"),
    [
        (np.zeros(5), "length"),
        (np.zeros((5, 32000), np.float32), "rank"),
        (np.zeros(160000, np.int16), "dtype"),
        (np.full(160000, np.nan, np.float32), "samples"),
    ],
)
def test_unpacked_waves_are_checked(published, wave, field):
    path = published / SINGLE / "wave_npy" / f"{TRAIN}.npy"
    path.parent.mkdir(parents=True)
    np.save(path, wave)
    assert [(record, name) for record, name, _ in problems_of(published)] == [("s4/aa_0_5000", field)]


def test_one_setting_is_enough_and_none_is_an_error(published, tmp_path):
    (published / "Multi-sources/ms3_meta_data.csv").unlink()
    layout = plugin.layout(published)
    assert {clip.id[:2] for clip in layout.clips} == {"s4"}
    prepared = prepare(layout, tmp_path / "prepared", frame_size=32, workers=1)
    with pytest.raises(DataError, match=r"setting: found s4 only; expected ms3; .*tasks\.avs\.setting=s4"):
        MaskData(prepared, "ms3", "clean")
    nothing = plugin.layout(tmp_path / "nowhere")
    assert nothing.clips == ()
    assert nothing.problems[0].found == "no metadata file"
    assert "s4_meta_data.csv" in nothing.problems[0].expected


def test_dataset_refuses_what_it_cannot_use(published_prepared, published, tmp_path, monkeypatch):
    rows = (published / "Multi-sources/ms3_meta_data.csv").read_text()
    (published / "Multi-sources/ms3_meta_data.csv").write_text(rows.replace("test", "train"))
    prepared = prepare(plugin.layout(published), tmp_path / "prepared", frame_size=32, workers=1)
    with pytest.raises(DataError, match="found no test video"):
        MaskData(prepared, "ms3", "clean")
    monkeypatch.setattr(published_prepared, "layout", "ave")
    with pytest.raises(DataError, match=r"layout: found ave; expected avs"):
        MaskData(published_prepared, "s4", "clean")
