"""The rows of the benchmark table (avmoe.md 8.3): each compares what AVCL computes with the plain formulation."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from clock import Row, compare, equal, peak, random, seconds
from direct_adapter import adapt, align, direct_adapters
from direct_parts import f_score as direct_f_score
from direct_parts import log_mel, tpavi
from models import batch_of, context, model_of, objective, towers_of
from torch import nn

from avcl_avs.metrics import f_score
from avcl_avs.tpavi import Tpavi
from avcl_core.models.avmoe import AvMoe, paired_blocks
from avcl_core.moe.adapter import MoeAdapter
from avcl_core.moe.align import Align
from avcl_core.moe.experts import CHUNK, ExpertShape, transposed_attention
from avcl_core.training.inputs import AudioInput
from avcl_core.walk import Ctx, DualStream


@dataclass(frozen=True)
class Setup:
    """What all rows share: device, ``full`` or ``tiny`` towers, repetitions, clips per pass of a whole model."""

    device: torch.device
    size: str
    repeats: int
    clips: int


def stages(setup: Setup) -> list[tuple[int, int, int, int, int]]:
    """Return visual tokens and width, audio tokens and width, and the number of pairs of every stage."""
    towers = towers_of(setup.size, torch.device("meta"))
    spec = [DualStream.solo(name, tower).spec().stages[name] for name, tower in towers.items()]
    pairs = [stage for stage, *_ in paired_blocks(towers["visual"], towers["audio"])]
    return [(v.tokens, v.width, a.tokens, a.width, pairs.count(i)) for i, (v, a) in enumerate(zip(*spec, strict=True))]


def mixer(setup: Setup) -> list[Row]:
    """Order of the two maps per adapter, forward, ten seconds; then all of a clip at skip 1."""
    rows, ours, direct = [], 0.0, 0.0
    for stage, (n_v, c_v, n_a, c_a, pairs) in enumerate(stages(setup)):
        for side, own, other, target in (
            ("audio", (n_a, c_a), (n_v, c_v), 0.65),
            ("visual", (n_v, c_v), (n_a, c_a), 1.05),
        ):
            torch.manual_seed(0)
            module = Align(other, own).to(setup.device)
            value = random(10, *other, device=setup.device)
            with torch.no_grad():
                row = compare(
                    f"mixer, {side} side, stage {stage}",
                    lambda module=module, value=value: module(value),
                    lambda module=module, value=value: align(module, value),
                    setup.device, setup.repeats, 1e-4, target,
                )  # fmt: skip
            (m, d), (n, c) = other, own
            costs = n * m * d + n * d * c, m * d * c + n * m * c
            row.more["flop_ratio"] = min(costs) / costs[0]
            rows.append(row)
            ours, direct = ours + 2 * pairs * (row.ours or 0), direct + 2 * pairs * (row.direct or 0)
    rows.append(Row("all mixers and projections of a clip, skip 1", ours, direct, target=0.75, ratio=ours / direct))
    return rows


def tpavi_rows(setup: Setup) -> list[Row]:
    """Linear against quadratic TPAVI of one clip, forward, at the two largest scales."""
    rows = []
    edges, width = ((56, 28), 256) if setup.size == "full" else ((16, 8), 32)
    for stage, (edge, target) in enumerate(zip(edges, (1 / 50, 1 / 20), strict=True)):
        torch.manual_seed(0)
        block = Tpavi(width, width // 2).to(setup.device)
        nn.init.ones_(block.batch_norm.weight)
        block.eval()
        grid, sound = (
            random(1, 5, width, edge, edge, device=setup.device),
            random(1, 5, width // 2, device=setup.device),
        )
        with torch.no_grad():
            row = compare(
                f"TPAVI, stage {stage}, N = {5 * edge * edge}",
                lambda block=block, grid=grid, sound=sound: block(grid, sound),
                lambda block=block, grid=grid, sound=sound: tpavi(block, grid, sound),
                setup.device, min(setup.repeats, 5), 1e-5, target,
            )  # fmt: skip
        row.more["saved_bytes"] = row.more["direct_peak_bytes"] - row.more["ours_peak_bytes"]
        rows.append(row)
    return rows


def logmel(setup: Setup) -> list[Row]:
    """Log-mels of a clip from the cache, against the front end on every second repeated; on the CPU, where loading happens."""
    cpu = torch.device("cpu")
    tower = towers_of(setup.size, cpu)["audio"]
    rate, longest = tower.info.sample_rate or 0, (tower.info.max_samples or 0) // (tower.info.sample_rate or 1)
    wave = (0.1 * random(longest, rate, device=cpu)).numpy()
    digest = hashlib.sha256(wave.tobytes()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        cached, bare = AudioInput(tower, rate, "clip", Path(folder)), AudioInput(tower, rate, "clip", None)
        cached(wave, digest)
        direct = lambda: log_mel(tower, torch.from_numpy(wave), longest)  # noqa: E731
        rows = [
            compare("log-mel of a clip, cached", lambda: cached(wave, digest), direct, cpu, setup.repeats, 0.0, 1 / 50),
            compare("log-mel of a clip, not cached", lambda: bare(wave, digest), direct, cpu, setup.repeats, 0.0),
        ]
        rows[0].more["file_bytes"] = max(path.stat().st_size for path in Path(folder).rglob("*.npy"))
        rows[0].more["seconds_of_sound"] = longest
    return rows


def experts(setup: Setup) -> list[Row]:
    """One adapter of the first stage, forward and backward, experts together against one by one, the same resampled tokens."""
    n_v, c_v, n_a, c_a, _ = stages(setup)[0]
    rows = []
    for each in (1, 2):
        torch.manual_seed(0)
        shape = ExpertShape(c_a, 8, 2, 32, uni_attention="latent")
        adapter = MoeAdapter("audio 0 0 attn", (n_v, c_v), n_a, shape, each, each).to(setup.device)
        open_gates(adapter)
        own, other = (
            random(10, n, c, device=setup.device, seed=n).requires_grad_() for n, c in ((n_a, c_a), (n_v, c_v))
        )
        inputs = [own, other, *adapter.parameters()]

        def work(call: Callable, inputs=inputs):
            out = call()
            gradients = torch.autograd.grad(out.square().mean(), inputs)
            return out.detach(), torch.cat([gradient.flatten() for gradient in gradients])

        with torch.no_grad():
            together, apart = (
                adapter(own, other, Ctx(frames=10)),
                adapt(adapter, own, other, Ctx(frames=10), adapter.align),
            )
        equal("experts, forward", together, apart, 1e-5)
        gpu = setup.device.type == "cuda"
        # The reference takes its resampling from Align, so that only the experts differ.
        row = compare(
            f"experts of one adapter, E = {2 * each}, forward and backward",
            lambda a=adapter, o=own, x=other: work(lambda: a(o, x, Ctx(frames=10))),
            lambda a=adapter, o=own, x=other: work(lambda: adapt(a, o, x, Ctx(frames=10), a.align)),
            setup.device, setup.repeats, 1e-3, (1 / 1.5 if gpu and each == 2 else 1.0),
        )  # fmt: skip
        rows.append(row)
    return rows


def masks(setup: Setup) -> list[Row]:
    """M_F of five frames of 224 × 224: one histogram against 255 passes; on the CPU, where scores are computed."""
    prob = random(5, 224, 224, device=torch.device("cpu")).sigmoid()
    truth = random(5, 224, 224, device=torch.device("cpu"), seed=1) > 0.5
    return [
        compare(
            "M_F of five frames",
            lambda: torch.tensor(f_score(prob, truth), dtype=torch.float64),
            lambda: torch.tensor(direct_f_score(prob, truth), dtype=torch.float64),
            torch.device("cpu"), setup.repeats, 1e-6, 1 / 5,
        )
    ]  # fmt: skip


def avqa(setup: Setup) -> list[Row]:
    """AVQA at test: without negative frames against with them."""
    model = model_of("avqa", setup.size, setup.device)
    question, drawn = (batch_of("avqa", setup.size, setup.clips, setup.device, negatives=n) for n in (False, True))
    model.eval()
    # The plain maps of negatives are kept in memory otherwise, which the released code does not do.
    model.kept.left, model.kept.rows = 0, drawn.inputs["negative"].shape[:2].numel()
    with torch.no_grad():
        return [
            compare(
                "AVQA test, without negatives",
                lambda: model(question, context(question))["answer"],
                lambda: model(drawn, context(drawn))["answer"],
                setup.device, setup.repeats, 1e-6, 0.72,
            )
        ]  # fmt: skip


def dense(setup: Setup) -> list[Row]:
    """AVVP with latent against dense unimodal attention, forward; equal where the inner gates are zero. And the streamed form."""
    _, _, n_a, c_a, _ = stages(setup)[0]
    tokens = random(1, n_a, c_a, device=setup.device) * c_a**-0.5
    rows = []
    with torch.no_grad():
        rows.append(
            compare(
                f"dense attention of N = {n_a}, in blocks of {CHUNK}",
                lambda: transposed_attention(tokens),
                lambda: (tokens @ tokens.mT).softmax(-1).mT @ tokens,
                setup.device, setup.repeats, 1e-5,
            )
        )  # fmt: skip
        latent = model_of("avvp", setup.size, setup.device)
        full = model_of("avvp", setup.size, setup.device, uni_attention="dense", imported=True)
        missing = full.load_state_dict(
            {k: v for k, v in latent.state_dict().items() if k in full.state_dict()}, strict=False
        )
        if missing.missing_keys:
            raise SystemExit(f"dense: the two models differ in {missing.missing_keys}")
        for model in (latent, full):
            for adapter in adapters_of(model):
                for name, expert in zip(adapter.names, adapter.experts, strict=True):
                    if name.startswith("uni"):
                        nn.init.zeros_(expert.inner_gate)
        batch = batch_of("avvp", setup.size, setup.clips, setup.device)
        row = compare(
            "AVVP forward, latent against dense",
            lambda: tuple(latent.eval()(batch, context(batch)).values()),
            lambda: _directly_dense(full.eval(), batch),
            setup.device, setup.repeats, 1e-4, 0.75,
        )  # fmt: skip
        rows.append(row)
    return rows


def _directly_dense(model: AvMoe, batch):
    with direct_adapters(model):
        return tuple(model(batch, context(batch)).values())


def syncs(setup: Setup) -> list[Row]:
    """Reads of the device by the host in a training step: forward, loss and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func._overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
                self.count += 1
            return func(*args, **(kwargs or {}))

    rows = []
    for task in ("ave", "avvp", "ms3"):
        model = model_of(task, setup.size, setup.device)
        batch = batch_of(task, setup.size, setup.clips, setup.device, training=True)
        model.train()
        strict = setup.device.type == "cuda"
        objective(model, batch, training=True).backward()  # the first pass may fill caches
        if strict:
            torch.cuda.set_sync_debug_mode("error")
        try:
            with Reads() as reads:
                objective(model, batch, training=True).backward()
        finally:
            if strict:
                torch.cuda.set_sync_debug_mode("default")
        rows.append(Row(f"host reads in a step, {task}", target=0, ratio=reads.count, more={"sync_debug_mode": strict}))
    return rows


def checkpointing(setup: Setup) -> list[Row]:
    """A training step (forward and backward) in fp32, in bf16, and in bf16 with activation checkpointing."""
    model = model_of("ave", setup.size, setup.device)
    batch = batch_of("ave", setup.size, setup.clips, setup.device, training=True)
    model.train()
    found = {}
    for name, mixed, recompute in (("fp32", False, False), ("bf16", True, False), ("bf16 recomputed", True, True)):
        model.options = model.options.model_copy(update={"recompute": recompute})

        def step(mixed=mixed):
            auto = torch.autocast(setup.device.type, torch.bfloat16) if mixed else nullcontext()
            with auto:
                loss = objective(model, batch, training=True)
            return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)

        step()
        found[name] = (
            peak(step, setup.device),
            min(seconds(step, setup.device) for _ in range(max(1, setup.repeats // 3))),
        )
    gradients = []
    for recompute in (False, True):
        model.options = model.options.model_copy(update={"recompute": recompute})
        torch.manual_seed(0)  # heads drop out
        loss = objective(model, batch, training=True)
        live = [p for p in model.parameters() if p.requires_grad]
        gradients.append(
            [loss.detach(), *(g for g in torch.autograd.grad(loss, live, allow_unused=True) if g is not None)]
        )
    difference = equal("recomputation", gradients[1], gradients[0], 1e-5)
    (fp32, fp32_time), (bf16, bf16_time), (less, less_time) = found.values()
    more = {"fp32_seconds": fp32_time, "ours_peak_bytes": less, "direct_peak_bytes": fp32, "bf16_peak_bytes": bf16}
    return [
        Row("peak of a step: bf16 with checkpointing / fp32", less_time, fp32_time, difference, 1e-5, 0.5, less / fp32, more),
        Row("time of a step: bf16 with checkpointing / bf16", less_time, bf16_time, None, None, 1.35, less_time / bf16_time),
        Row("peak of a step: bf16 / fp32", bf16_time, fp32_time, None, None, 0.7, bf16 / fp32,
            {"ours_peak_bytes": bf16, "direct_peak_bytes": fp32}),
    ]  # fmt: skip


def checkpoint(setup: Setup) -> list[Row]:
    """Size of what a commit stores of AVE at full size, counted on tensors without values."""
    from avcl_core.ownership import Owners

    model = model_of("ave", "full", torch.device("meta"))
    owned = sum(row.tensor.numel() * row.tensor.element_size() for row in Owners(model).rows.values())
    everything = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    more = {"owned_bytes": owned, "state_dict_bytes": everything}
    return [
        Row(
            "checkpoint of AVE, GB (everything: the state with towers)",
            owned / 1e9,
            everything / 1e9,
            None,
            None,
            0.4,
            owned / 1e9,
            more,
        )
    ]


def open_gates(module: nn.Module) -> None:
    """Give the gates values, so that experts and latents reach the result."""
    for name, parameter in module.named_parameters():
        if name.endswith(("output_gate", "inner_gate")):
            nn.init.constant_(parameter, 0.1)


def adapters_of(model: nn.Module) -> list[MoeAdapter]:
    """Return the adapters of a model."""
    return [module for module in model.modules() if isinstance(module, MoeAdapter)]


ROWS: dict[str, Callable[[Setup], list[Row]]] = {
    "mixer": mixer,
    "tpavi": tpavi_rows,
    "logmel": logmel,
    "experts": experts,
    "masks": masks,
    "avqa": avqa,
    "dense": dense,
    "syncs": syncs,
    "checkpointing": checkpointing,
    "checkpoint": checkpoint,
}
