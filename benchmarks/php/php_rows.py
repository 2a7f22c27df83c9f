"""The rows of PHP's table: training steps, evaluation, single parts, FLOPs and bytes, ours against the plain formulation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import php_direct
import torch
from clock import Row, Unequal, compare, equal, peak, random, seconds
from php_cases import TASKS, TEXTS, TINY, batch_of, context, direct_heads, learning, model_of, score
from php_direct_parts import adapt, gates_open, generate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from avcl_core.adapters.cross_modal import CrossModalAdapter
from avcl_core.batch import Batch
from avcl_core.models.php import Php
from avcl_core.ownership import Owners, train_mode
from avcl_core.walk import Ctx

META = torch.device("meta")
STEP = {"ave": 1.4, "avvp": 1.4, "avqa": 1.2, "avs": 1.1}
"""How many times faster a training step was hoped to be."""
EVALUATION = {"ave": 2.0, "avvp": 2.0, "avqa": 1.2, "avs": 1.1}
SPECIFIED = {"backbone": 229, "shallow": 52, "mid": 288, "deep": 1.7}
"""GF of one clip of ten frames in php.md 9.3; `mid` before its rewrites."""


@dataclass(frozen=True)
class Setup:
    """What all rows share."""

    device: torch.device
    size: str
    repeats: int


def step(setup: Setup, task: str, clips: int = 2) -> list[Row]:
    """A training step: forward, backward, clipping and Adam, at the published batch of two; loss and gradients must agree."""
    model = model_of(setup.size, setup.device, (task,))
    batch = batch_of(task, setup.size, clips, setup.device)
    live = learning(model, task)
    train_mode(model, model.active(_experience(task)))
    optimizer = torch.optim.Adam(live, lr=0.0)

    def run(direct: bool) -> list[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        with direct_heads(model) if direct else nullcontext():
            loss = _objective(model, batch, direct)
        loss.backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in live]
        torch.nn.utils.clip_grad_norm_(live, 0.5)
        optimizer.step()
        return [loss.detach(), torch.cat([grad.flatten() for grad in grads])]

    name = f"training step, {task}, {clips} clips"
    return [_timed(setup, name, lambda: run(False), lambda: run(True), 2e-3, 1 / STEP[task])]


def evaluation(setup: Setup, task: str) -> list[Row]:
    """Prediction of one clip, as the released code evaluates; what ours keeps between batches is kept."""
    model = model_of(setup.size, setup.device, (task,)).eval()
    batch = batch_of(task, setup.size, 1, setup.device)

    def run(direct: bool) -> list[Tensor]:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if direct:
                stack.enter_context(direct_heads(model))
            outputs = php_direct.forward(model, batch, False)[0] if direct else model(batch, context(batch))
            return list(outputs.values())

    name = f"evaluation, {task}, 1 clip"
    return [_timed(setup, name, lambda: run(False), lambda: run(True), 2e-3, 1 / EVALUATION[task])]


def texts(setup: Setup) -> list[Row]:
    """Class texts of AVE: cut behind the longest in training, kept in evaluation, against all 77 places every time."""
    model = model_of(setup.size, setup.device, ("ave",))
    context_rows = model.contexts["ave"].vectors.requires_grad_()

    def learns(encode: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        found = encode()
        (slope,) = torch.autograd.grad(found.square().sum(), [context_rows])
        return found.detach(), slope

    def plain(encode: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            return encode()

    def normal(value: Tensor) -> Tensor:
        return torch.nn.functional.normalize(value, dim=-1)

    def names() -> Tensor:
        features, mix = php_direct.class_texts(model, "ave"), model.options.text.adapter
        return normal(mix * php_direct.bottleneck(model.text["names"], features) + (1 - mix) * features)

    prompts = model.prompts["ave"]
    count = len(TEXTS["ave"])
    rows = [
        compare(f"{count} class texts of CLIP with gradient, {prompts.ids.shape[1]} places of 77",
                lambda: learns(lambda: prompts.encode(context_rows)),
                lambda: learns(lambda: php_direct.class_texts(model, "ave")), setup.device, setup.repeats, 2e-4),
        compare(f"{count} class texts of CLIP, kept", lambda: plain(lambda: model.seen_names("ave")),
                lambda: plain(names), setup.device, setup.repeats, 2e-4),
        compare(f"{count} class texts of CLAP, kept", lambda: model.heard_names("ave"),
                lambda: normal(php_direct.sound_texts(model, "ave")), setup.device, setup.repeats, 2e-4),
    ]  # fmt: skip
    return rows


def generator(setup: Setup) -> list[Row]:
    """Generated prompts of ten frames for both modalities: the last layer for its first token, dictionary projections shared."""
    model = model_of(setup.size, setup.device, ("avqa",))
    prompts: Any = model.mid_prompts.slots["avqa"]  # type: ignore[union-attr]
    tokens = model.walks[0].shapes()["visual"]["0.attn"].tokens
    grid, narrow = model.sound
    heard = grid[0] * grid[1] // 16 * narrow // model.width
    seen, sound = (random(10, n, model.width, device=setup.device, seed=n) for n in (tokens, heard))
    live = list(prompts.parameters())

    def run(direct: bool, grad: bool):
        with torch.set_grad_enabled(grad):
            if direct:
                found = [torch.stack(generate(prompts, value), 1) for value in (seen, sound)]
            else:
                found = list(prompts(seen, sound, Ctx(frames=10)))
            if not grad:
                return found
            slopes = torch.autograd.grad(1e3 * sum(value.square().sum() for value in found), live)
            return [*(value.detach() for value in found), torch.cat([slope.flatten() for slope in slopes])]

    return [
        compare(f"generated prompts, {what}", lambda g=grad: run(False, g), lambda g=grad: run(True, g), setup.device,
                setup.repeats, 2e-4)
        for what, grad in (("forward", False), ("forward and backward", True))
    ]  # fmt: skip


def adapter(setup: Setup) -> list[Row]:
    """One adapter of the first block per modality, ten frames, forward and backward."""
    model, rows = model_of(setup.size, setup.device, ("avqa",)), []
    for name in ("audio", "visual"):
        module = model.parts[f"{name}_0_attn_add"]
        assert isinstance(module, CrossModalAdapter)
        gates_open(module)
        own, other = (random(10, *shape, device=setup.device, seed=shape[0]) for shape in (module.own, module.other))
        own, other = own.requires_grad_(), other.requires_grad_()
        inputs = [own, other, *module.parameters()]

        def work(call: Callable[[], Tensor], inputs=inputs):
            out = call()
            slopes = torch.autograd.grad(out.square().mean(), inputs)
            return out.detach(), torch.cat([slope.flatten() for slope in slopes])

        rows.append(
            compare(f"adapter, {name} side, forward and backward",
                    lambda m=module, a=own, b=other: work(lambda: m(a, b, Ctx(frames=10))),
                    lambda m=module, a=own, b=other: work(lambda: adapt(m, a, b)), setup.device, setup.repeats, 1e-3)
        )  # fmt: skip
    return rows


def phases(setup: Setup) -> list[Row]:
    """GF of a forward pass of one clip by phase, counted on tensors without values; a phase is what leaving it out saves.

    Both are without the front end. What php.md 9.3 says stands beside it; its deep prompts are those of the sight alone.
    """
    off, batch = {"blocks": []}, batch_of("avqa", setup.size, 1, META)
    sizes = TINY if setup.size == "tiny" else {}

    def both(**changes: Any) -> tuple[float, float]:
        model = model_of(setup.size, META, ("avqa",), **changes).eval()
        return _count(lambda: _features(model, batch, False)), _count(lambda: _features(model, batch, True))

    def less(more: tuple[float, float], fewer: tuple[float, float]) -> tuple[float, float]:
        return more[0] - fewer[0], more[1] - fewer[1]

    whole, bare = both(), both(shallow=off, mid=off, deep=off)
    no_deep, sight = both(deep=off), both(deep={**sizes.get("deep", {}), "modalities": ["visual"]})
    found = {
        "backbone": bare,
        "shallow": less(whole, both(shallow=off)),
        "mid": less(whole, both(mid=off)),
        "deep": less(sight, no_deep),
        "deep, sound": less(whole, sight),
    }
    return [
        Row(
            f"GF of a clip, {phase}",
            ours,
            direct,
            ratio=ours / direct,
            more={"specified_gigaflops": SPECIFIED.get(phase)} if setup.size == "full" else {},
        )
        for phase, (ours, direct) in found.items()
    ]


def flops(setup: Setup) -> list[Row]:
    """GF by phase; of class texts, in a step (CLIP's are encoded once for the whole batch) and in evaluation; and of whole clips."""
    rows = phases(setup)
    for task in TASKS:
        model, batch = model_of(setup.size, META, (task,)).eval(), batch_of(task, setup.size, 1, META)
        with torch.no_grad(), META:
            model(batch, context(batch))  # texts are kept from now on
        if task == "ave":
            learns = _count(lambda m=model: m.prompts["ave"].encode(m.contexts["ave"].vectors))
            direct = [
                _count(lambda m=model, f=f: f(m, "ave")) for f in (php_direct.class_texts, php_direct.sound_texts)
            ]
            rows.append(Row("GF of a step, texts of AVE", learns, sum(direct), ratio=learns / sum(direct)))
            kept = _count(lambda m=model: (m.seen_names("ave"), m.heard_names("ave")))
            rows.append(Row("GF of an evaluation, texts of AVE", kept, sum(direct), ratio=kept / sum(direct)))
        ours = _count(lambda m=model, b=batch: m(b, context(b)))
        with direct_heads(model):
            other = _count(lambda m=model, b=batch: php_direct.forward(m, b, False))
        rows.append(Row(f"GF of a clip, evaluation, {task}", ours, other, ratio=ours / other))
    return rows


def checkpoint(setup: Setup) -> list[Row]:
    """MB that a commit stores per task (its prompts, context and head), and of what is shared, against a whole state."""
    model, rows = model_of("full", META), []
    sizes: dict[str, int] = {}
    for row in Owners(model).rows.values():
        sizes[row.owner] = sizes.get(row.owner, 0) + row.tensor.numel() * row.tensor.element_size()
    everything = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    for task in TASKS:
        own = sum(sizes.get(f"{kind}:{task}", 0) for kind in ("task", "head"))
        alone = sum(t.numel() * t.element_size() for t in model_of("full", META, (task,)).state_dict().values())
        rows.append(
            Row(f"MB of {task}'s own tensors (direct: a whole state)", own / 1e6, alone / 1e6, ratio=own / alone)
        )
    shared = sum(size for owner, size in sizes.items() if owner.startswith("shared"))
    rows.append(
        Row("MB of what is shared (direct: everything)", shared / 1e6, everything / 1e6, ratio=shared / everything)
    )
    return rows


# ------------------------------------------------------------------ how
def _experience(task: str):
    from php_cases import experience

    return experience(task)


def _objective(model: Php, batch: Batch, direct: bool) -> Tensor:
    if direct:
        return score(*php_direct.forward(model, batch, True))
    ctx = context(batch, training=True)
    return score(model(batch, ctx), ctx.aux)


def _features(model: Php, batch: Batch, direct: bool) -> Any:
    with torch.no_grad(), torch.device(batch.inputs["visual"].device):
        return php_direct.features(model, batch, False) if direct else model.features(batch, context(batch))


def _count(call: Callable[[], Any]) -> float:
    """GF of a call on tensors without values."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operations have no formula
    try:
        with torch.no_grad(), torch.device("meta"), _Counter() as counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.total / 1e9


class _Counter(TorchDispatchMode):
    """Adds up torch's FLOP formulas, without the hooks on modules of its own counter."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def _timed(
    setup: Setup, name: str, ours: Callable[[], Any], direct: Callable[[], Any], tolerance: float, target: float
) -> Row:
    """Equality first; then the best of a few turns, because whole passes are long; then the peaks."""
    difference = equal(name, ours(), direct(), tolerance)
    times: dict[str, list[float]] = {"ours": [], "direct": []}
    for _ in range(max(1, setup.repeats // 3)):
        times["ours"].append(seconds(ours, setup.device))
        times["direct"].append(seconds(direct, setup.device))
    mine, theirs = min(times["ours"]), min(times["direct"])
    more = {"ours_peak_bytes": peak(ours, setup.device), "direct_peak_bytes": peak(direct, setup.device)}
    more["times_faster"] = theirs / mine
    return Row(name, mine, theirs, difference, tolerance, target, mine / theirs, more)


ROWS: dict[str, Callable[[Setup], list[Row]]] = {
    "texts": texts,
    "generator": generator,
    "adapter": adapter,
    "flops": flops,
    "checkpoint": checkpoint,
    **{f"step-{task}": lambda setup, task=task: step(setup, task) for task in TASKS},
    **{f"evaluation-{task}": lambda setup, task=task: evaluation(setup, task) for task in TASKS},
}
__all__ = ["ROWS", "Setup", "Unequal"]
