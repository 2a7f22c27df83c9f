"""How fast a run is and what it needs: samples per second and peak memory of loading, forward pass and full step, per task."""

from __future__ import annotations

import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from avcl_core.batch import Batch
from avcl_core.config.load import Source
from avcl_core.config.run import load_run
from avcl_core.methods.base import Method
from avcl_core.ownership import Owners
from avcl_core.running.assemble import Assembly, assemble, inputs_of
from avcl_core.running.launch import Console, launch_fabric
from avcl_core.seeding import seed_step
from avcl_core.stream import Session
from avcl_core.training.loader import Loader, Request
from avcl_core.training.optimizers import NamedOptimizer
from avcl_core.training.options import TrainingOptions
from avcl_core.training.order import Portion, epoch_plan
from avcl_core.training.session_data import SessionData
from avcl_core.training.stepper import Stepper

PHASES = ("front end", "loading", "forward", "step")


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
    plan = epoch_plan(session, options.seed, 0, training.batch_size, 1)
    stepper = _stepper(assembly, method, session, training, len(plan))
    for experience in session.experiences:
        data = SessionData(loader, experience, training.evaluation_batch, lambda: None)
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
            yield {"task": experience.task, "phase": phase, **_measure(work, sizes, torch.device(loader.device))}
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
        name: NamedOptimizer(groups, owners, training, length * training.epochs)
        for name, groups in method.optimizers(session).items()
    }
    return Stepper(
        method, assembly.tasks, assembly.stream, assembly.loader, training, live, optimizers, method.collective,
        assembly.options.seed, assembly.fabric.autocast,
    )  # fmt: skip


def _measure(work: Callable[[int], None], sizes: list[int], device: torch.device) -> dict[str, Any]:
    """Run ``work`` for every batch; the first one is not counted."""
    work(0)
    _reset_peak(device)
    seconds = []
    for i in range(1, len(sizes)):
        _wait(device)
        begin = time.perf_counter()
        work(i)
        _wait(device)
        seconds.append(time.perf_counter() - begin)
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
