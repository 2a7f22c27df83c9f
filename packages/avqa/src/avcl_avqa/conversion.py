"""Questions of either benchmark as conversation records: id as text, markers before the question, media by the video's id (5.2)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from avcl_avqa.conversations import FRAMES
from avcl_avqa.open_records import OpenQuestion, listed
from avcl_core.data.atomic import write_chunks

MARKS = "<video>\n<audio>\n"
"""What stands before every question."""


def conversation(question: OpenQuestion, folder: str = "") -> dict[str, Any]:
    """Return the record of a question, answer verbatim, with ``frame_001.jpg`` … ``frame_008.jpg`` and ``audio.wav`` of its video.

    Args:
        folder: the folder that has one folder per video; without it paths are relative, for ``media_root``.
    """
    base = f"{folder.rstrip('/')}/{question.video}" if folder else question.video
    return {
        "id": question.id,
        "conversations": [
            {"from": "human", "value": MARKS + question.question},
            {"from": "gpt", "value": question.answer},
        ],
        "video": [f"{base}/frame_{number:03d}.jpg" for number in range(1, FRAMES + 1)],
        "voice": [f"{base}/audio.wav"],
    }


def write_conversations(path: Path, questions: Iterable[OpenQuestion], folder: str = "") -> tuple[int, str]:
    """Write the records as one file, atomically, in the published form; returns (bytes, sha256), a function of the questions alone.

    Raises:
        ValueError: there are no questions, they are of several splits or types (a file is named after one), or an id repeats.
    """
    questions = list(questions)
    sources = {(question.split, question.type) for question in questions}
    if len(sources) != 1:
        raise ValueError(f"{path.name}: questions of {sorted(sources) or 'nothing'}; expected one split and one type")
    repeated = [id for id, times in Counter(question.id for question in questions).items() if times > 1]
    if repeated:
        raise ValueError(f"{path.name}: {len(repeated)} ids repeat: {listed(repeated)}; expected each once")
    text = json.dumps([conversation(question, folder) for question in questions], indent=2, ensure_ascii=False)
    return write_chunks(path, [text.encode()])
