"""How fast a run is and what it needs: samples per second and peak memory of loading, forward pass and full step, per task."""

from __future__ import annotations

import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from avcl_core.batch import Batch
from avcl_core.config.load import Source, read
from avcl_core.config.presets import find_config
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError, nearest
from avcl_core.methods.base import Method
from avcl_core.ownership import Owners
from avcl_core.running.assemble import Assembly, assemble, inputs_of
from avcl_core.running.launch import Console, launch_fabric
from avcl_core.running.preview import substitutes
from avcl_core.seeding import seed_step
from avcl_core.stream import Session
from avcl_core.training.loader import Loader, Request
from avcl_core.training.optimizers import NamedOptimizer
from avcl_core.training.options import TrainingOptions
from avcl_core.training.order import Pace, Portion, epoch_plan
from avcl_core.training.session_data import SessionData
from avcl_core.training.stepper import Stepper

PHASES = ("front end", "loading", "forward", "step")
SPLIT: tuple[str, ...] = ("forward", "head", "backward", "optimizer", "other")
"""Where the time of a step goes: towers and adapters, the head, the backward pass, the optimiser, and the rest (losses, checks)."""
NAMED = ("task", "method", "size", "setting")
"""What names a configuration of a task package: ``task=ave method=avmoe size=full``."""


def named_source(overrides: Sequence[str]) -> tuple[Source, list[str]]:
    """Return the configuration ``<task>[_<setting>]_<method>`` of a task's package; ``size=tiny`` takes its ``_embedded`` form.

    At full size, weights and data that are not here are replaced (:func:`avcl_core.running.preview.substitutes`), and a step
    has one clip, unless the overrides say otherwise: what a step of n clips costs is n times as much.

    Returns:
        The configuration, and the overrides that were added.

    Raises:
        ConfigError: ``task`` or ``method`` is missing, ``size`` is unknown, or the package ships no such configuration.
    """
    pairs = [text.partition("=")[::2] for text in overrides]
    chosen = {key: value for key, value in pairs if key in NAMED}
    rest = [f"{key}={value}" for key, value in pairs if key not in NAMED]
    for key in ("task", "method"):
        if key not in chosen:
            raise ConfigError(
                f"bench {' '.join(overrides)}: {key}= is missing; for example task=ave method=avmoe size=tiny"
            )
    size = chosen.get("size", "tiny")
    if size not in ("tiny", "full"):
        raise ConfigError(f"bench size={size}: expected tiny or full{nearest(size, ('tiny', 'full'))}")
    names = [chosen["task"], chosen.get("setting"), chosen["method"], "embedded" if size == "tiny" else None]
    path = find_config("_".join(name for name in names if name), f"avcl_{chosen['task']}")
    added = [] if size == "tiny" else substitutes(path, rest)
    if size == "full":
        named = {text.partition("=")[0] for text in rest}
        wanted = {"training.batch_size": "1", "training.micro_batch": "null"}
        added += [f"{key}={value}" for key, value in wanted.items() if not named & wanted.keys()]
    return read(path, [*added, *rest]), added


def bench(source: Source, steps: int, console: Console) -> dict[str, Any]:
    """Measure every task of a configuration's stream.

    Per task, on ``steps`` training batches each: ``front end`` loads them without any cache, ``loading`` as training does
    (front-end features cached), ``forward`` predicts others, ``step`` is a whole optimiser step with everything that the method
    does, on further ones (as far as the split has them: a model may keep what it has seen); earlier tasks were learnt for these steps and their hooks were run, so that memories are filled. One batch of each
    phase is run before the clock starts. Nothing is written but prepared data and the front-end cache.

    Returns:
        ``machine``: what it ran on; ``configuration``: digest; ``tasks``: one record per task and phase.
    """
    options, parts = load_run(source)
    fabric, collective = launch_fabric(options)
    assembly = assemble(options, parts, fabric, collective, console.bar)
    method = assembly.build()
    records = []
    for session in assembly.sessions:
        for experience in session.experiences:
            seed_step(options.seed, "grow", experience.name)
            method.model.grow(experience)
        method.model.to(assembly.loader.device)
        records += _session(assembly, method, session, steps, console)
    return {"machine": _machine(assembly), "configuration": options.digest, "tasks": records}


def _session(
    assembly: Assembly, method: Method, session: Session, steps: int, console: Console
) -> Iterator[dict[str, Any]]:
    options, loader = assembly.options, assembly.loader
    training = options.training.of({experience.task for experience in session.experiences})
    paces = {e.name: Pace(options.training.of({e.task}).batch_size) for e in session.experiences}
    plan = epoch_plan(session, options.seed, 0, paces)
    stepper = _stepper(assembly, method, session, training, len(plan))
    for experience in session.experiences:
        data = SessionData(loader, experience, training.evaluation_batch, lambda: None)
        method.model.calibrate(experience, data, assembly.stream.task_id == "hidden")
        method.before(experience, data)
        mine = [portion for portion in plan if portion.experience is experience]
        bare = Loader(assembly.tasks, inputs_of(options, assembly.towers, assembly.tasks, None), loader.device)
        for number, phase in enumerate(PHASES):
            console.say(f"{experience.name}: {phase}")
            first = {"forward": steps + 1, "step": 2 * (steps + 1)}.get(phase, 0)
            chosen = [mine[(first + i) % len(mine)] for i in range(steps + 1)]
            requests = [stepper.my_requests(portion, (options.seed, "bench", i)) for i, portion in enumerate(chosen)]
            through = bare if phase == "front end" else loader
            work = _reading(through, requests)
            if phase == "loading":  # training reads everything again in every epoch
                for i in range(len(requests)):
                    work(i)
            if number > 1:
                batches = [[loader.load(request) for request in group] for group in requests]
                work = _predicting(method, batches) if phase == "forward" else _stepping(stepper, batches, chosen)
            sizes = [len(portion.keys) for portion in chosen]
            device = torch.device(loader.device)
            with _watching(method, stepper, device) as seconds:
                found = _measure(work, sizes, device, seconds)
            split = {"split": {name: seconds[name] / steps for name in SPLIT}} if phase == "step" else {}
            yield {"task": experience.task, "phase": phase, **found, **split}
        method.after(experience, data)


Work = Callable[[int], None]
"""Does batch ``i`` of a phase."""


def _reading(loader: Loader, requests: list[list[Request]]) -> Work:
    def work(i: int) -> None:
        for request in requests[i]:
            loader.load(request)

    return work


def _predicting(method: Method, batches: list[list[Batch]]) -> Work:
    def work(i: int) -> None:
        for batch in batches[i]:
            method.predict(batch.question(False))

    return work


def _stepping(stepper: Stepper, batches: list[list[Batch]], chosen: list[Portion]) -> Work:
    def work(i: int) -> None:
        stepper.step(batches[i], len(chosen[i].keys), ("bench", chosen[i].experience.name, i), i)

    return work


def _stepper(assembly: Assembly, method: Method, session: Session, training: TrainingOptions, length: int) -> Stepper:
    owners = Owners(method.model)
    live = tuple(pattern for experience in session.experiences for pattern in method.active(experience))
    owners.set_trainable(live)
    optimizers = {
        name: NamedOptimizer(groups, owners, training, [length] * training.epochs)
        for name, groups in method.optimizers(session).items()
    }
    return Stepper(
        method, assembly.tasks, assembly.stream, assembly.loader, training, live, optimizers, method.collective,
        assembly.options.seed, assembly.fabric.autocast,
    )  # fmt: skip


@contextmanager
def _watching(method: Method, stepper: Stepper, device: torch.device) -> Iterator[dict[str, float]]:
    """Charge the time within the block to the parts of a step; ``other`` is left for the caller."""
    seconds = dict.fromkeys(SPLIT, 0.0)
    calls: list[tuple[Any, str, str]] = [
        (method.model, "features", "forward"), (method.model, "read", "head"), (torch.Tensor, "backward", "backward"),
    ]  # fmt: skip
    calls += [(optimizer, "step", "optimizer") for optimizer in stepper.optimizers.values()]

    def timed(call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timing(*arguments: Any, **options: Any) -> Any:
            _wait(device)
            begin = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                _wait(device)
                seconds[name] += time.perf_counter() - begin

        return timing

    backward = torch.Tensor.backward
    for owner, call, name in calls:
        setattr(owner, call, timed(getattr(owner, call), name))
    try:
        yield seconds
    finally:
        for owner, call, _ in calls[:2] + calls[3:]:
            delattr(owner, call)
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def _measure(
    work: Callable[[int], None], sizes: list[int], device: torch.device, split: dict[str, float]
) -> dict[str, Any]:
    """Run ``work`` for every batch; the first one is not counted."""
    work(0)
    split.update(dict.fromkeys(split, 0.0))
    _reset_peak(device)
    seconds = []
    for i in range(1, len(sizes)):
        _wait(device)
        begin = time.perf_counter()
        work(i)
        _wait(device)
        seconds.append(time.perf_counter() - begin)
    split["other"] = sum(seconds) - sum(split.values())
    return {
        "batch_size": sizes[1],
        "batches": len(seconds),
        "samples_per_second": sum(sizes[1:]) / sum(seconds),
        "seconds_per_batch": {
            "median": statistics.median(seconds), "min": min(seconds), "max": max(seconds),
        },
        "peak_memory_bytes": _peak(device),
    }  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # where the system has no such file, the peak is that of the whole process so far
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> int:
    """Peak of allocated device memory, or of the process's resident memory on the CPU, since the last reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _machine(assembly: Assembly) -> dict[str, Any]:
    device, fabric = assembly.loader.device, assembly.options.fabric
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else platform.processor()
    return {
        "device": str(device),
        "name": name,
        "threads": torch.get_num_threads(),
        "precision": fabric.precision,
        "torch": version("torch"),
        "python": platform.python_version(),
    }
