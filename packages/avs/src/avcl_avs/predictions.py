"""Predicted masks outside of memory: a compact JSON form that keeps every metric, and PNG files to look at."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avcl_avs.levels import foreground
from avcl_core.data.atomic import write_chunks
from avcl_core.task import Prediction


def pack(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction's levels as text: zlib, then base64."""
    level = np.ascontiguousarray(prediction["level"])
    text = base64.b64encode(zlib.compress(level.tobytes(), 6)).decode("ascii")
    return {"level": text, "shape": list(level.shape)}


def unpack(record: Mapping[str, Any]) -> Prediction:
    """Return the prediction that :func:`pack` stored."""
    data = zlib.decompress(base64.b64decode(record["level"], validate=True))
    return {"level": np.frombuffer(data, dtype=np.uint8).reshape(record["shape"])}


def save_masks(folder: Path, predictions: Mapping[str, Prediction], places: Mapping[str, str]) -> int:
    """Write the predicted masks as PNG files of 0 and 255, and return how many (tasks.md 3.9).

    Args:
        folder: ``<folder>/<place>/<video>_<0…4>.png`` are written.
        predictions: by sample key.
        places: sample key → ``[<category>/]<video>``.
    """
    count = 0
    for key, prediction in predictions.items():
        for frame, mask in enumerate(foreground(prediction["level"])):
            buffer = io.BytesIO()
            Image.fromarray(mask.astype(np.uint8) * 255).save(buffer, "PNG")
            place = Path(places[key])
            write_chunks(folder / place / f"{place.name}_{frame}.png", [buffer.getvalue()], flush=False)
            count += 1
    return count
