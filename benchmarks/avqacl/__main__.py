"""Benchmark of routing and answering: ``python benchmarks/avqacl RUN``, samples per second in batches against one by one, equal answers."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from avcl_core.evaluation.predicting import Found, Listeners, SlotBySlot
from avcl_core.models.anchor_experts import AnchorExperts
from avcl_core.models.kept import Kept
from avcl_core.routing import CHOSEN
from avcl_core.running.launch import Console, Restored, restore


def answered(run: Restored, size: int) -> tuple[Found, list[str], float]:
    """Return the answers and experts of all test questions, nothing known beforehand, and the seconds that it took."""
    method, loader = run.trainer.method, run.assembly.loader
    model = method.model
    assert isinstance(model, AnchorExperts)
    model.kept = Kept(model.options.cache_mib * 2**20)
    way = SlotBySlot(
        lambda experience, split, keys: loader.batches(experience, split, size, keys), run.trainer.evaluator.hidden,
        run.collective, lambda: None,
    )  # fmt: skip
    found: Found = {}
    slots: list[str] = []
    start = time.perf_counter()
    for test in run.tests:
        experience = run.assembly.stream.experience(test.experience)
        predictions, choices = way.predict(method, experience, test.split, CHOSEN, Listeners())
        found |= predictions
        slots += [choice.slot for choice in choices.values()]
    return found, slots, time.perf_counter() - start


def main() -> None:
    """Time both ways in turns and print the ratio; an unequal answer is an error."""
    parser = argparse.ArgumentParser(prog="python benchmarks/avqacl", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run of anchor experts")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    run = restore(given.run, None, Console())
    first, chosen, _ = answered(run, given.batch)
    times: dict[int, list[float]] = {given.batch: [], 1: []}
    for _ in range(given.repeats):
        for size, taken in times.items():
            found, experts, seconds = answered(run, size)
            taken.append(seconds)
            if experts != chosen or any(
                bytes(found[k]["text"]).rstrip(b"\0") != bytes(first[k]["text"]).rstrip(b"\0") for k in first
            ):
                sys.exit(f"error: answers in batches of {size} differ from those in batches of {given.batch}")
    many, one = (statistics.median(times[size]) for size in (given.batch, 1))
    record = {
        "questions": len(first), "batch": given.batch, "threads": torch.get_num_threads(),
        "samples_per_second": {str(given.batch): round(len(first) / many, 2), "1": round(len(first) / one, 2)},
        "ratio": round(one / many, 2),
    }  # fmt: skip
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
