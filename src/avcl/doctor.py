"""What ``avcl doctor`` checks: everything that has to work before the first run."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from importlib.metadata import version

LIBRARIES = (
    "torch",
    "torchvision",
    "torchaudio",
    "timm",
    "transformers",
    "lightning-fabric",
    "av",
    "numpy",
    "pydantic",
)


def checks() -> list[dict[str, str]]:
    """Return one row per check: what, state (``ok``, ``note``, ``broken``) and detail."""
    rows = [_row("python", "ok", platform.python_version())]
    rows += [_try(f"library {name}", lambda name=name: version(name)) for name in LIBRARIES]
    rows += [
        _try("libraries import together", _import_together),
        _try("device", _device),
        _try("H.264 and AAC", _codecs),
        *_plugins(),
        *_embedded(),
        _disk(),
    ]
    return rows


def _row(what: str, state: str, detail: str) -> dict[str, str]:
    return {"check": what, "state": state, "detail": detail}


def _try(what: str, check: Callable[[], str]) -> dict[str, str]:
    try:
        return _row(what, "ok", check())
    except Exception as error:
        return _row(what, "broken", f"{type(error).__name__}: {error}")


def _import_together() -> str:
    import timm
    import torch
    import torchaudio
    import torchvision
    import transformers

    return " ".join(f"{m.__name__} {m.__version__}" for m in (torch, torchvision, torchaudio, timm, transformers))


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _codecs() -> str:
    from av.codec import Codec

    return ", ".join(f"{Codec(name, 'w').name} encodes" for name in ("libx264", "aac"))


def _plugins() -> list[dict[str, str]]:
    from avcl_core.plugins import GROUPS, listing

    return [
        _row(f"{kind} {p.name}", "broken" if p.error else "ok", p.error or p.distribution)
        for kind in GROUPS
        for p in listing(kind)
    ]


def _embedded() -> list[dict[str, str]]:
    import shared_backbones

    def load(name: str) -> str:
        return f"sha256 {shared_backbones.create(name, size='tiny').weights_digest()[:12]}"

    return [_try(f"tiny weights {name}", lambda name=name: load(name)) for name in shared_backbones.names()]


def _disk() -> dict[str, str]:
    free = shutil.disk_usage(".").free / 1e9
    return _row("free disk here", "ok" if free > 5 else "note", f"{free:.0f} GB")
