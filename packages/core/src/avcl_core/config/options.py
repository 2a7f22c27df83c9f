"""The base of every configuration model: frozen, and an unknown key is an error."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Frozen configuration model that forbids unknown keys; every component carries one of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    def refuse_changed(self, names: Sequence[str], why: str) -> None:
        """Refuse options that were given but have no effect; one given as its default says nothing, as in a complete record.

        Raises:
            ValueError: one of ``names`` was set to something else than its default.
        """
        for name in names:
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if name in self.model_fields_set and getattr(self, name) != default:
                raise ValueError(f"{name} has no effect with {why}; leave it out")
