"""The path rule of conversation files: prefixes rewritten, relative paths below one folder, missing files counted (5.1, 5.4)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from avcl_avqa.open_records import NAMED, Media, OpenQuestion, listed
from avcl_core.data.problems import Problem
from avcl_core.data.records import AnnotationFile
from avcl_core.errors import ConfigError

PLACEHOLDER = "/path/to"
"""What paths of the released files begin with."""


@dataclass(frozen=True)
class MediaPaths:
    """Where media are.

    Attributes:
        media_root: the folder that relative paths are relative to.
        path_rewrite: (written prefix, prefix instead), whole path components; the first that fits is taken.

    Raises:
        ConfigError: a written prefix is empty.
    """

    media_root: Path | None = None
    path_rewrite: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for written, instead in self.path_rewrite:
            if not written.rstrip("/"):
                raise ConfigError(f"path_rewrite: found {written!r} → {instead!r}; expected a prefix; name one")

    def __call__(self, path: str) -> str:
        """Return ``path`` rewritten, and below ``media_root`` if it is relative and there is one."""
        for written, instead in self.path_rewrite:
            prefix = written.rstrip("/")
            if path == prefix or path.startswith(f"{prefix}/"):
                path = instead.rstrip("/") + path[len(prefix) :]
                break
        if self.media_root is not None and not os.path.isabs(path):
            return str(self.media_root / path)
        return path


def resolve(file: AnnotationFile, questions: Sequence[OpenQuestion], rule: MediaPaths) -> list[OpenQuestion]:
    """Return the questions with the paths that the rule gives.

    Placeholders that are left, relative paths without a ``media_root`` and missing files are recorded in ``file.problems``, one
    finding each with its count and the first paths; nothing is left out.
    """
    found = [replace(question, media=_resolved(question, rule)) for question in questions]
    paths: dict[str, str] = {}
    for question in found:
        for path in question.media.paths:
            paths.setdefault(path, question.id)
    placeholders = [path for path in paths if path.startswith(f"{PLACEHOLDER}/")]
    relative = [path for path in paths if not os.path.isabs(path)]
    unresolved = {*placeholders, *relative}
    missing = [path for path in paths if path not in unresolved and not os.path.isfile(path)]

    def wrong(which: list[str], text: str, expected: str, action: str) -> None:
        found = f"{len(which)} of {len(paths)} {text}"
        file.problems.append(Problem(str(file.path), f"from id {paths[which[0]]} on", "media", found, expected, action))

    if placeholders:
        prefix = _folder_of_folders(placeholders)
        text = f"paths with the placeholder {PLACEHOLDER}, all below {prefix}"
        wrong(placeholders, text, "paths of files", f"set path_rewrite, e.g. [[{prefix}, <folder of the frames>]]")
    if relative:
        text = f"paths are relative: {listed(relative)}"
        wrong(relative, text, "absolute paths, or a media_root", "set media_root")
    if missing:
        text = f"files are missing; the first {min(NAMED, len(missing))}: {listed(missing)}"
        wrong(missing, text, "every file there", "add the files, or correct media_root and path_rewrite")
    return found


def _resolved(question: OpenQuestion, rule: MediaPaths) -> Media:
    media = question.media
    voice, image = (None if path is None else rule(path) for path in (media.voice, media.image))
    return replace(media, frames=tuple(rule(path) for path in media.frames), voice=voice, image=image)


def _folder_of_folders(paths: Sequence[str]) -> str:
    """The folder that holds one folder per video, or the placeholder where there is no such folder."""
    shared = os.path.commonpath([os.path.dirname(os.path.dirname(path)) for path in paths])
    return shared if shared.startswith(PLACEHOLDER) else PLACEHOLDER
