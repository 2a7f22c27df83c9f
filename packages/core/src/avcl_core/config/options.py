"""The base of every configuration model: frozen, and an unknown key is an error."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """Frozen configuration model that forbids unknown keys; every component carries one of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
