"""What a user may ask of an evaluation, as KEY=VALUE: another split, less to see, other routes, corruptions, features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from avcl_core.config.run import modality_names
from avcl_core.errors import ConfigError, nearest
from avcl_core.routing import CHOSEN, Routing

KEYS = ("split", "modalities", "to", "reads", "corruptions", "features")


@dataclass(frozen=True)
class Asked:
    """How to evaluate.

    Attributes:
        split: another split than that of the test sets.
        modalities: what prediction sees, if not what the run saw.
        corruptions: a list of corruptions as text.
        features: whether to write the towers' mean final features too.
        routing: where hidden samples are sent, if not where the model sends them.
    """

    split: str | None = None
    modalities: tuple[str, ...] | None = None
    corruptions: str | None = None
    features: bool = False
    routing: Routing = CHOSEN

    def name(self, first: str) -> str:
        """Return the name of the folder below ``evaluations`` that begins with ``first``."""
        sent = [
            self.routing.to and f"to-{self.routing.to}",
            self.routing.reads and f"reads-{'-'.join(self.routing.reads)}",
        ]
        return "-".join(part for part in (first, self.split, "-".join(self.modalities or ()), *sent) if part)


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
    routing = Routing(
        given.get("to"), tuple(name.strip() for name in given.get("reads", "").split(",") if name.strip())
    )
    if routing.to and routing.reads:
        raise ConfigError(
            f"{command} to={routing.to} reads=…: nothing is compared where the expert is named; give one of them"
        )
    if routing != CHOSEN and "corruptions" in given:
        raise ConfigError(f"{command} corruptions=…: samples go where the model sends them; leave out to= and reads=")
    seen = None if modalities is None else tuple(modalities)
    return Asked(split, seen, given.get("corruptions"), features, routing)


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
