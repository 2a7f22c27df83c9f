"""The settings of AVE by name: what training knows, and what reads the answer out."""

from __future__ import annotations

from avcl_ave import EventOptions
from avcl_ave.dataset import EventData
from avcl_ave.task import EventLocalisation
from avcl_ave.text import TextEventLocalisation
from avcl_ave.weak import WeakEventLocalisation
from avcl_core.data.prepared import Prepared

SETTINGS: dict[tuple[str, str], type[EventLocalisation]] = {
    ("supervised", "cmbs"): EventLocalisation,
    ("weak", "cmbs"): WeakEventLocalisation,
    ("supervised", "text"): TextEventLocalisation,
}
"""(setting, head) → task; the options refuse other pairs."""


def build(options: EventOptions, prepared: Prepared, protocol: str) -> EventLocalisation:
    """Return the task over prepared data, as the package's plug-in builds it."""
    return SETTINGS[options.setting, options.head](EventData(prepared, protocol), options.width)
