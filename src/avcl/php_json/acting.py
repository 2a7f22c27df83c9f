"""The keys of the authors' file that act: what each may be, and where it stands in a configuration of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from avcl.php_json.file import File
from avcl.php_json.keys import BLOCKS, CLIP, TASKS, bottlenecks
from avcl_core.errors import nearest

Act = Callable[[File, str], None]
"""Carries one key over."""


# ---------------------------------------------------------------------- the run
def _prefix(file: File, key: str) -> None:
    value = file.values[key]
    if not isinstance(value, str) or not value:
        raise file.error(key, "the name of the run")
    file.put(key, "label", value)


def _train(file: File, key: str) -> None:
    if file.switch(key):
        file.fits(key, "avcl run")
    else:
        file.fits(key, "avcl eval RUN")
        file.hints.append("train 0 asks for a test: avcl eval RUN, of a run that this configuration has trained")


def _seed(file: File, key: str) -> None:
    seeds = file.values[key]
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise file.error(key, "a list of whole numbers from 0")
    file.put(key, "seed", seeds[0])
    if len(seeds) > 1:
        listed = " ".join(f"--seed {seed}" for seed in dict.fromkeys(seeds))
        file.hints.append(
            f"the file has {len(seeds)} seeds and the configuration the first: avcl sweep CONFIG {listed}"
        )


def _device(file: File, key: str) -> None:
    given = file.values[key]
    first = given[0] if isinstance(given, list) and given else None
    if type(first) is bool or not str(first).isdecimal():
        raise file.error(key, 'a list that begins with the index of a GPU, as ["0"]')
    file.put(key, "fabric.devices", 1)
    if int(str(first)):
        file.hints.append(f"a run takes the first GPU that it sees: CUDA_VISIBLE_DEVICES={first} avcl run CONFIG")


def _given(file: File, key: str) -> None:
    if not file.switch(key):
        raise file.error(
            key,
            "1: the released code cannot run otherwise; ours hides tasks with stream.task_id=hidden model.router=centres",
        )
    file.put(key, "stream.task_id", "given")


def _order(file: File, key: str) -> None:
    order = file.values[key]
    if not isinstance(order, list) or not order:
        raise file.error(key, f"a list of {', '.join(TASKS)}")
    for name in order:
        if not isinstance(name, str) or name not in TASKS:
            raise file.error(key, f"tasks named {', '.join(TASKS)}{nearest(str(name), [*TASKS])}")
    if len(set(order)) < len(order):
        raise file.error(key, "every task once")
    file.put(key, "stream.tasks", [TASKS[name] for name in order])


# ---------------------------------------------------------------------- towers
def _clip(file: File, key: str) -> None:
    variant, weights = CLIP[file.choice(key, [*CLIP])]
    file.put(key, "towers.visual.variant", variant)
    file.put(key, "towers.visual.checkpoint", weights)


def _width(file: File, key: str) -> None:
    if file.whole(key, 1) != 768:
        raise file.error(key, "768, the width of the tower")
    file.fits(key, "the width of the tower")


# ---------------------------------------------------------------------- the three phases
def _phase(name: str, switch: str) -> Act:
    def blocks(file: File, key: str) -> None:
        given = file.values[key]
        whole = isinstance(given, list) and all(type(block) is int and 0 <= block < BLOCKS for block in given)
        if not whole or len(set(given)) < len(given):
            raise file.error(key, f"different blocks from 0 to {BLOCKS - 1}")
        if file.switch(switch):
            file.put(key, f"model.{name}.blocks", given)
        else:
            file.ignore(key, f"{switch} is 0")

    return blocks


def _phase_switch(name: str) -> Act:
    def act(file: File, key: str) -> None:
        if file.switch(key):
            file.fits(key, f"model.{name}.blocks names its blocks")
        else:
            file.put(key, f"model.{name}.blocks", [])

    return act


def _pool(file: File, key: str) -> None:
    value = file.whole(key, 1)
    if file.switch("prompt_pool"):
        file.put(key, f"model.deep.{key}", value)
    else:
        file.ignore(key, "prompt_pool is 0")


def _top_k(file: File, key: str) -> None:
    if file.whole(key, 1) > file.values.get("pool_size", 3) and file.switch("prompt_pool"):
        raise file.error(key, f"at most pool_size {file.values.get('pool_size', 3)}")
    _pool(file, key)


def _pooled(file: File, key: str) -> None:
    if file.switch(key):
        file.fits(key, "model.deep.pool_size")
    else:
        file.put(key, "model.deep.pool_size", 1)
        file.put(key, "model.deep.top_k", 1)


def _key_init(file: File, key: str) -> None:
    how = file.choice(key, ("uniform", "zero"))
    if not file.switch("prompt_pool"):
        file.ignore(key, "prompt_pool is 0")
    elif file.values.get("pool_size", 3) == 1:
        file.ignore(key, "a pool of one entry has no keys")
    else:
        file.put(key, "model.deep.key_init", how)


def _query(file: File, key: str) -> None:
    how = file.choice(key, ("mean", "max", "mean_max", "cls"))
    file.put(key, "model.deep.query", how)
    if how == "cls":  # Sound has no class token; the released code has deep prompts for sight alone.
        file.put(key, "model.deep.modalities", ["visual"])


def _must(value: bool, text: str) -> Act:
    def act(file: File, key: str) -> None:
        if file.switch(key) != value:
            raise file.error(key, f"{int(value)}: {text}")
        file.fits(key, text)

    return act


def _groups(file: File, key: str) -> None:
    groups = file.whole(key, 1)
    used = file.values.get("s_prompt_layer_idx", [0, 1]) if file.switch("use_shallow_adapter") else []
    for channels in sorted(bottlenecks(used)):
        if channels % groups:
            raise file.error(key, f"a divisor of {channels}, the channels of a bottleneck")
    file.put(key, "model.shallow.groups", groups)


# ---------------------------------------------------------------------- text
def _count(file: File, key: str) -> None:
    value = file.whole(key, 1)
    words = _words(file)
    if words and words != value:
        file.ignore(key, f"the {words} words of CTX_INIT fix the count")
    else:
        file.put(key, "model.context.tokens", value)


def _phrase(file: File, key: str) -> None:
    if not isinstance(file.values[key], str):
        raise file.error(key, "a phrase, or an empty text")
    words = _words(file)
    if words:
        file.put(key, "model.context.tokens", words)
    else:
        file.ignore(key, "there is none; N_CTX fixes the count")


def _words(file: File) -> int:
    phrase = file.values.get("CTX_INIT")
    return len(phrase.replace("_", " ").split()) if isinstance(phrase, str) else 0


# ---------------------------------------------------------------------- training
def _rate(file: File, key: str) -> None:
    least = f"a number from {file.floor:g}, the lowest rate of the schedule"
    file.put(key, "training.lr", file.number(key, file.floor, least))


def _epochs(file: File, key: str) -> None:
    value = file.whole(key, 1)
    file.put(key, "training.epochs", value)
    if value != 10:
        file.hints.append(
            f"with init_epoch {value} the cosine ends after {value} epochs; in the released code it always has a half-period of 10"
        )


# ---------------------------------------------------------------------- kinds of keys
def _whole(ours: str, least: int = 1) -> Act:
    return lambda file, key: file.put(key, ours, file.whole(key, least))


def _weight(ours: str) -> Act:
    return lambda file, key: file.put(key, ours, file.number(key, 0, "a number from 0"))


def _flag(ours: str) -> Act:
    return lambda file, key: file.put(key, ours, file.switch(key))


def _choice(ours: str, names: Sequence[str]) -> Act:
    return lambda file, key: file.put(key, ours, file.choice(key, names))


def _fixed(name: str, text: str) -> Act:
    def act(file: File, key: str) -> None:
        file.choice(key, (name,), f": {text}")
        file.fits(key, text)

    return act


ACTING: Mapping[str, Act] = {
    "prefix": _prefix,
    "model_name": _fixed("AVLearner", "model php is the only one"),
    "train": _train,
    "seed": _seed,
    "device": _device,
    "is_task_incremental": _given,
    "task_order": _order,
    "ViT": _clip,
    "embed_dim": _width,
    "use_shallow_adapter": _phase_switch("shallow"),
    "use_mid_prompt": _phase_switch("mid"),
    "use_deep_prompt": _phase_switch("deep"),
    "s_prompt_layer_idx": _phase("shallow", "use_shallow_adapter"),
    "m_prompt_layer_idx": _phase("mid", "use_mid_prompt"),
    "d_prompt_layer_idx": _phase("deep", "use_deep_prompt"),
    "d_prompt_length": _whole("model.deep.length"),
    "pool_size": _pool,
    "top_k": _top_k,
    "prompt_pool": _pooled,
    "prompt_key": _must(True, "keys are learned"),
    "embedding_key": _query,
    "prompt_init": _choice("model.deep.init", ("uniform", "zero")),
    "prompt_key_init": _key_init,
    "use_prefix_tune_for_d_prompt": _must(True, "deep prompts are a prefix of keys and values"),
    "same_key_value": _flag("model.deep.same_key_value"),
    "num_tokens": _whole("model.shallow.latents"),
    "num_conv_group": _groups,
    "is_bn": _flag("model.shallow.batch_norm"),
    "is_before_layernorm": _flag("model.shallow.pre_norm"),
    "is_post_layernorm": _flag("model.shallow.post_norm"),
    "is_multimodal": _flag("model.shallow.cross"),
    "alpha": _weight("model.shallow.alpha"),
    "beta": _weight("model.shallow.beta"),
    "gamma": _weight("model.shallow.gamma"),
    "N_CTX": _count,
    "CTX_INIT": _phrase,
    "class_token_position": _fixed("end", "class names stand behind the context"),
    "fine_tune": _must(False, "towers are frozen; training them would be another method"),
    "init_lr": _rate,
    "init_epoch": _epochs,
    "batch_size": _whole("training.batch_size"),
    "num_workers": _whole("workers", 0),
}
"""Key of the authors that acts → what carries it over."""
