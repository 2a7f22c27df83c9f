"""A hand-made AVSBench folder in the published layout, and a tiny generated one, composed and prepared once."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from avcl_avs import plugin
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import Prepared
from avcl_core.world.procedural import ProceduralBank
from avcl_core.world.writer import WorldSize

S4 = {"aa_0_5000": ("race_car", "train"), "bb_0_5000": ("lions_roaring", "val"), "cc_0_5000": ("race_car", "test")}
MS3 = {"dd": "train", "ee": "val", "ff": "test"}


def write_png(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)


def truth(number: int) -> np.ndarray:
    """The mask of frame ``number``: a rectangle that grows."""
    mask = np.zeros((224, 224), dtype=bool)
    mask[10 : 30 + 10 * number, 40:141] = True
    return mask


def write_published(root: Path) -> Path:
    """Three videos of each setting, masks 1-bit in S4 and palette in MS3, sounds of 16 kHz."""
    rng = np.random.default_rng(0)
    single, multiple = root / "Single-source", root / "Multi-sources"
    places = [
        (single / "s4_data", video, f"{split}/{cls}", 1 if split == "train" else 5)
        for video, (cls, split) in S4.items()
    ]
    places += [(multiple / "ms3_data", video, split, 5) for video, split in MS3.items()]
    for media, video, place, masks in places:
        s4 = media.name == "s4_data"
        frames = media / "visual_frames" / (f"{place}/{video}" if s4 else video)
        for number in range(1, 6):
            noise = rng.integers(0, 8, (224, 224, 3)).astype(np.uint8) + np.uint8(40 * number)
            write_png(frames / f"{video}{'' if s4 else '.mp4'}_{number}.png", noise)
        for number in range(1, masks + 1):
            path = media / "gt_masks" / place / video / f"{video}_{number}.png"
            write_png(path, truth(number).astype(np.uint8) * 255, "1" if s4 else "P")
        sound = media / "audio_wav" / place / f"{video}.wav"
        sound.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(sound, np.sin(np.arange(5 * 16000) / 8) * 0.3, 16000, subtype="PCM_16")
    rows = "".join(f"{video},{10 * i},{cls},{split}\n" for i, (video, (cls, split)) in enumerate(S4.items()))
    (single / "s4_meta_data.csv").write_text(f"a,b,c,split\n{rows}")
    rows = "".join(f"{video},{split}\n" for video, split in MS3.items())
    (multiple / "ms3_meta_data.csv").write_text(f"video_id,split\n{rows}")
    return root


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def published(_published: Path, tmp_path: Path) -> Path:
    """A copy of the hand-made folder, to break."""
    return shutil.copytree(_published, tmp_path / "AVSBench_data")


@pytest.fixture(scope="session")
def published_prepared(_published: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(plugin.layout(_published), tmp_path_factory.mktemp("prepared") / "avs", frame_size=32, workers=1)


@pytest.fixture(scope="session")
def avs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "avs"
    plugin.compose(ProceduralBank("task", 10), WorldSize(train=5, val=2, test=2, seconds=5, size=56, fps=2), 3, root, 1)
    return root


@pytest.fixture(scope="session")
def avs_prepared(avs_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(plugin.layout(avs_root), tmp_path_factory.mktemp("prepared") / "avs", frame_size=64, workers=1)
