"""What a user may ask of an evaluation, as KEY=VALUE: another split, less to see, corruptions, features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from avcl_core.config.run import modality_names
from avcl_core.errors import ConfigError, nearest

KEYS = ("split", "modalities", "corruptions", "features")


@dataclass(frozen=True)
class Asked:
    """How to evaluate.

    Attributes:
        split: another split than that of the test sets.
        modalities: what prediction sees, if not what the run saw.
        corruptions: a list of corruptions as text.
        features: whether to write the towers' mean final features too.
    """

    split: str | None = None
    modalities: tuple[str, ...] | None = None
    corruptions: str | None = None
    features: bool = False

    def name(self, first: str) -> str:
        """Return the name of the folder below ``evaluations`` that begins with ``first``."""
        return "-".join(part for part in (first, self.split, "-".join(self.modalities or ())) if part)


def asked(command: str, given: Mapping[str, str]) -> Asked:
    """Return what the keys of :data:`KEYS` in ``given`` say; ConfigError with the ``command``, for a value that it does not know."""
    split = choice(command, given, "split", ("val", "test"))
    modalities = modality_names(given["modalities"]) if "modalities" in given else None
    for modality in modalities or ():
        choice(command, {"modalities": modality}, "modalities", ("visual", "audio"))
    features = choice(command, given, "features", ("true", "false")) == "true"
    if features and "corruptions" in given:
        raise ConfigError(
            f"{command} features=true: is of one evaluation, corruptions= asks for several; give one of them"
        )
    return Asked(split, None if modalities is None else tuple(modalities), given.get("corruptions"), features)


def choice(command: str, given: Mapping[str, str], key: str, values: tuple[str, ...]) -> str | None:
    """Return the value of a key, one of ``values``, or nothing."""
    value = given.get(key)
    if value is not None and value not in values:
        raise ConfigError(f"{command} {key}={value}: expected one of {', '.join(values)}{nearest(str(value), values)}")
    return value


def refuse_unknown(command: str, given: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Raise ConfigError that names a key which ``command`` does not know."""
    for key in given:
        if key not in known:
            raise ConfigError(f"{command} {key}=…: is unknown{nearest(key, known)}; expected {'=, '.join(known)}=")
