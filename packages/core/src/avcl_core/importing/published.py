"""What a task package says of checkpoints that the papers' code wrote for it: which configuration, which head, which keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avcl_core import plugins
from avcl_core.errors import ConfigError, nearest
from avcl_core.importing.keymap import KeyMap, Rule


@dataclass(frozen=True)
class Published:
    """One kind of published checkpoint of a task.

    Attributes:
        task: registered name of the task.
        package: importable package that ships the configuration.
        config: name of the configuration that an imported run takes.
        head: tensors of our head, by names below it → the authors' keys; its ``dead`` keys are those outside towers and adapters.
        settings: options of the task under which the head is the published one.
        surplus: authors' key → number of rows of which only the first ones mean something.
        adapters: whether the checkpoint holds mixture adapters beside the head; without them the model is ``frozen``.
        foreign_adapters: whether a file with another method's adapters is read too: its head and towers, without them.
        selected_on_test: whether its authors chose the epoch on the test split (avmoe.md 2.2).
    """

    task: str
    package: str
    config: str
    head: KeyMap
    settings: Mapping[str, Any] = field(default_factory=dict)
    surplus: Mapping[str, int] = field(default_factory=dict)
    adapters: bool = True
    foreign_adapters: bool = False
    selected_on_test: bool = False


def published_names() -> list[str]:
    """Return what ``--task`` can name: every kind of checkpoint that an installed package knows."""
    return sorted(name for task in plugins.names("task") for name in _table(task))


def published(name: str) -> Published:
    """Return a kind of checkpoint by name; ConfigError for an unknown one."""
    for task in plugins.names("task"):
        table = _table(task)
        if name in table:
            return table[name]()
    raise ConfigError(f"task {name!r}: no published checkpoint of that name is known{nearest(name, published_names())}")


def _table(task: str) -> Mapping[str, Any]:
    try:
        return plugins.load("task", task).published
    except ConfigError:  # a plug-in that does not load, which is its own error when it is asked for
        return {}


def context_rules(ours: str, index: str) -> Sequence[Rule]:
    """Return the rules of one temporal context (``avcl_core.heads.temporal``), which two published heads share.

    Args:
        ours: pattern of the context's name, with exactly one group.
        index: what follows the authors' module names: nothing, or the group where they are lists.
    """
    rules: list[Rule] = []
    for mine, theirs in (("visual", "video"), ("audio", "audio")):
        recurrent = "visual_rnn" if mine == "visual" else "audio_rnn"
        coder = rf"temporal_attn.{theirs}_encoder{index}"
        rules += [
            (rf"{ours}\.{mine}_lstm\.(.+)", rf"temporal_attn.audio_visual_rnn_layer{index}.{recurrent}.\2"),
            (rf"{ours}\.{mine}_encoder\.0\.(.+)", rf"{coder}.affine_matrix.\2"),
            (rf"{ours}\.{mine}_encoder\.1\.(.+)", rf"{coder}.encoder.layers.0.\2"),
            (rf"{ours}\.{mine}_encoder\.2\.(.+)", rf"{coder}.encoder.layers.1.\2"),
            (rf"{ours}\.{mine}_gate\.(.+)", rf"temporal_attn.{theirs}_gated{index}.0.\2"),
        ]
    return rules


TEMPLATES = r"temporal_attn\.(video|audio)_encoder(\.\d)?\.encoder_layer\..+"
"""Layers of the temporal context that its authors copied and left registered."""
