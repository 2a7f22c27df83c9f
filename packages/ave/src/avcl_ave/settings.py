"""The settings of AVE by name: what training knows."""

from __future__ import annotations

from avcl_ave import EventOptions
from avcl_ave.dataset import EventData
from avcl_ave.task import EventLocalisation
from avcl_ave.weak import WeakEventLocalisation
from avcl_core.data.prepared import Prepared

SETTINGS = {"supervised": EventLocalisation, "weak": WeakEventLocalisation}


def build(options: EventOptions, prepared: Prepared, protocol: str) -> EventLocalisation:
    """Return the task over prepared data, as the package's plug-in builds it."""
    return SETTINGS[options.setting](EventData(prepared, protocol), options.width)
