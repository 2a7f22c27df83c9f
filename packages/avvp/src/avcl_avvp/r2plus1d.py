"""Motion features for users without the published files: r2plus1d_18 over every second of the raw videos (``avvp features``)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.video import R2Plus1D_18_Weights, r2plus1d_18

from avcl_avvp.data import SECONDS
from avcl_avvp.layout import layout
from avcl_avvp.motion import RECORD, read_motion
from avcl_core.data.atomic import sha256_of, write_chunks, write_json
from avcl_core.data.frames import read_frames
from avcl_core.data.layout import ClipSource
from avcl_core.data.problems import QUARANTINE, MediaError, Problem, write_problems
from avcl_core.errors import ConfigError, DataError

FRAMES = 16
"""Frames of a second that the network sees."""


def load_network(checkpoint: Path) -> nn.Module:
    """Return torchvision's r2plus1d_18 without its class head, in eval mode; it maps ``[n, 3, f, 112, 112]`` to ``[n, 512]``.

    Args:
        checkpoint: torchvision's state dict (``r2plus1d_18-91a641e6.pth``, Kinetics-400) or the same names as safetensors.

    Raises:
        DataError: the file is missing, holds more than tensors, or has other names or shapes.
    """
    if not checkpoint.is_file():
        raise DataError(f"{checkpoint}: found no such file; expected torchvision's weights of r2plus1d_18")
    network = r2plus1d_18()
    try:
        if checkpoint.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(checkpoint)
        else:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{checkpoint}: found no file of tensors ({reason}); fetch the weights again") from None
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{checkpoint}: {reason}; expected torchvision's state dict of r2plus1d_18") from None
    return nn.Sequential(*list(network.children())[:-1], nn.Flatten()).eval()


def second_vectors(network: nn.Module, frames: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """Return one vector per second, float32 ``[10, 512]``.

    Args:
        network: as :func:`load_network` returns it.
        frames: uint8 ``[10·16, H, W, 3]``, evenly spaced over the clip; each sixteen are a second.

    Each second goes through the transforms that torchvision states for its Kinetics-400 weights: 128 × 171, centre crop of 112,
    their mean and standard deviation. How the published features were made is unknown (tasks.md 2.3).
    """
    transform = R2Plus1D_18_Weights.KINETICS400_V1.transforms()
    vectors = []
    with torch.inference_mode():
        for second in torch.from_numpy(frames).permute(0, 3, 1, 2).split(FRAMES):
            clip: Tensor = transform(second)
            vectors.append(network(clip[None].to(device))[0].float().cpu())
    return torch.stack(vectors).numpy()


def compute_features(
    source: Path,
    out: Path,
    checkpoint: Path,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write ``<id>.npy`` float32 ``[10, 512]`` for every video below ``source``, LLP's layout, into ``out``; return how many.

    What is there from an earlier call with the same recipe is kept, so a stopped call goes on where it was. ``recipe.json``
    beside the features says checkpoint, digest and sampling; preparation takes it along, and runs report it.

    Raises:
        ConfigError: ``device`` is not there.
        DataError: the layout has no video files, the checkpoint is unusable, or ``out`` holds other features. At the end, if
            videos could not be read: they are listed in ``out/quarantine.jsonl``, and all others are done.
    """
    clips = [clip for clip in layout(source).clips if clip.video is not None]
    if not clips:
        raise DataError(f"{source}: videos: found none; expected LLP_dataset/video/<id>.mp4 of the annotated clips")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"device {device}: {reason}; expected cpu, or cuda or cuda:N of this machine") from None
    network = load_network(checkpoint).to(device)
    _claim(out, checkpoint)
    problems: list[Problem] = []
    for done, clip in enumerate(clips, start=1):
        target = out / f"{clip.id}.npy"
        try:
            if not _is_done(target):
                write_chunks(target, [_npy(second_vectors(network, _frames(clip), device))], flush=False)
        except MediaError as error:
            problems.append(error.problem)
        if progress:
            progress(done, len(clips))
    if problems:
        write_problems(out / QUARANTINE, problems)
        raise DataError(
            f"{out / QUARANTINE}: {len(problems)} of {len(clips)} videos without features; first: {problems[0]}"
        )
    (out / QUARANTINE).unlink(missing_ok=True)
    return len(clips)


def _frames(clip: ClipSource) -> np.ndarray:
    assert clip.video is not None
    return read_frames(clip.video, "evenly", SECONDS * FRAMES)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _is_done(path: Path) -> bool:
    try:
        read_motion((path,))
    except MediaError:
        return False
    return True


def _claim(out: Path, checkpoint: Path) -> None:
    """Write the recipe into ``out``; DataError when it holds features of another one, or of none."""
    recipe = {
        "network": "torchvision r2plus1d_18",
        "torchvision": torchvision.__version__,
        "checkpoint": checkpoint.name,
        "sha256": sha256_of(checkpoint),
        "frames": f"{FRAMES} a second, evenly spaced over the clip",
    }
    path = out / RECORD
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = None if not any(out.glob("*.npy")) else "features without a recipe"
    except ValueError as error:
        raise DataError(
            f"{path}: content: found {error}; expected JSON; choose another folder or delete this one"
        ) from None
    if found not in (None, recipe):
        differs = [k for k in recipe if found.get(k) != recipe[k]] if isinstance(found, dict) else [str(found)]
        raise DataError(
            f"{out}: found {', '.join(differs)}; expected an empty folder or the same recipe; choose another folder"
        )
    write_json(path, recipe)
