"""What the keys of PHP's published JSON configuration stand for, as far as it is a table (php.md, appendix A)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TASKS: Mapping[str, str] = {"AVE": "ave", "LLP": "avvp", "AVS": "avs", "AVQA": "avqa"}
"""Task of the authors → ours."""
CLIP: Mapping[str, tuple[str, str]] = {
    "ViT-B/32": ("b32", "weights/ViT-B-32.pt"),
    "ViT-B/16": ("b16", "weights/ViT-B-16.pt"),
}
"""Visual tower → our variant and its file. Only towers with as many blocks as CLAP's."""
BLOCKS = 12
"""Blocks of either tower."""

_WITHOUT_EFFECT = "the authors read it without effect"
_NEVER = "the authors never read it"
_UNUSED = "it leads to a branch that the authors do not use"
_FILES = "it is part of a file name of the authors"

NO_MEMORY = f"{_UNUSED}: no samples are kept"
"""Why a key that begins with :data:`UNUSED_PREFIX` is ignored."""
UNUSED_PREFIX = "memory_"
"""What the names of further unused keys begin with."""
IGNORED: Mapping[str, str] = {
    # keys that act there and have no counterpart
    "domain_order": "it belongs to a benchmark of five domains, not to this method",
    "batchwise_prompt": "prompts are chosen for each video by itself, so that a result does not depend on others in the batch",
    "is_gate": "the output of an adapter always has a gate, in both modalities",
    # file names and unused branches
    "shuffle": f"{_UNUSED}; training samples are always shuffled",
    "init_cls": _FILES,
    "increment": _FILES,
    "net_type": _FILES,
    "data_path": f"{_UNUSED}: their code has the folders; ours is data.root=FOLDER",
    "memory_size": NO_MEMORY,
    "memory_per_class": NO_MEMORY,
    "fixed_memory": NO_MEMORY,
    "class_order": f"{_UNUSED}: every task has all of its classes",
    # read without effect
    "prompt_length": f"{_WITHOUT_EFFECT}; the length is d_prompt_length",
    "audio_prompt_length": _WITHOUT_EFFECT,
    "middle_adapter_layers": _WITHOUT_EFFECT,
    "lrate": f"{_WITHOUT_EFFECT}; the rate is init_lr, for every task",
    "epochs": f"{_WITHOUT_EFFECT}; the number is init_epoch, for every task",
    "lrate_decay": f"{_WITHOUT_EFFECT}; the schedule is a cosine",
    "init_lr_decay": f"{_WITHOUT_EFFECT}; the schedule is a cosine",
    # never read
    "description": _NEVER,
    "use_prefix_tune_for_e_prompt": f"{_NEVER}; use_prefix_tune_for_d_prompt acts",
    "use_p_prompt": _NEVER,
    "d_prompt_init": f"{_NEVER}; prompt_init acts",
    "audio_embed_dim": f"{_NEVER}; widths are the towers'",
    "total_sessions": f"{_NEVER}; a stream has as many sessions as task_order has tasks",
    "is_open_text": _NEVER,
    "weak": _NEVER,
    "is_audio_adapter_p1": _NEVER,
    "is_audio_adapter_p2": _NEVER,
    "is_audio_adapter_p3": _NEVER,
    "Adapter_downsample": f"{_NEVER} and use 8; ours is model.shallow.reduction",
    "milestones": f"{_NEVER}; the schedule is a cosine",
    "multiclass": _NEVER,
    "weight_decay": f"{_NEVER} and use 1e-5; ours is training.weight_decay",
}
"""Key → why it is ignored; whatever its value, it is no error."""


def bottlenecks(blocks: Iterable[int]) -> set[int]:
    """Return the channels of the adapters' bottlenecks at blocks, an eighth of both towers' widths."""
    widths = (*(96,) * 2, *(192,) * 2, *(384,) * 6, *(768,) * 2)
    return {width // 8 for block in blocks for width in (widths[block], 768)}
