"""Measures two ways of computing the same: equality first, then time in turns, then peak memory."""

from __future__ import annotations

import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Unequal(SystemExit):
    """Two formulations differ: the run fails, whatever was measured."""


@dataclass
class Row:
    """One line of the table.

    Attributes:
        item: what is compared.
        ours, direct: median seconds.
        difference: largest absolute difference of the results, relative to their largest value; ``tolerance`` bounds it.
        target: largest ratio ours / direct that was hoped for, or nothing.
        ratio: what is compared with the target: of times, unless said otherwise.
        more: further figures.
    """

    item: str
    ours: float | None = None
    direct: float | None = None
    difference: float | None = None
    tolerance: float | None = None
    target: float | None = None
    ratio: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target was reached."""
        return None if self.target is None or self.ratio is None else self.ratio <= self.target

    def to_json(self) -> dict[str, Any]:
        """Return the row with its verdict."""
        return {**asdict(self), "met": self.met}


def equal(item: str, ours: Any, direct: Any, tolerance: float) -> float:
    """Return the largest difference of two (tuples of) tensors relative to the largest value; end the run above ``tolerance``."""
    worst = 0.0
    pairs = zip(ours, direct, strict=True) if isinstance(ours, (tuple, list)) else [(ours, direct)]
    for mine, theirs in pairs:
        mine, theirs = torch.as_tensor(mine).detach().double(), torch.as_tensor(theirs).detach().double()
        if mine.shape != theirs.shape:
            raise Unequal(f"{item}: shapes {tuple(mine.shape)} and {tuple(theirs.shape)}")
        far = float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
        worst = far if far != far else max(worst, far)  # what is not a number stays visible
        if not far <= tolerance:
            break
    if not worst <= tolerance:
        raise Unequal(f"{item}: ours and direct differ by {worst:.2e}, more than {tolerance:.0e}")
    return worst


def compare(
    item: str,
    ours: Callable[[], Any],
    direct: Callable[[], Any],
    device: torch.device,
    repeats: int,
    tolerance: float,
    target: float | None = None,
) -> Row:
    """Check that two calls return equal tensors, then time them in turns, then take their peaks.

    Returns:
        a row whose ``more`` has the peak memory of either call, in bytes.
    """
    difference = equal(item, ours(), direct(), tolerance)
    times: dict[str, list[float]] = {"ours": [], "direct": []}
    for _ in range(repeats):
        for name, call in (("ours", ours), ("direct", direct)):
            times[name].append(seconds(call, device))
    mine, theirs = (statistics.median(times[name]) for name in ("ours", "direct"))
    peaks = {f"{name}_peak_bytes": peak(call, device) for name, call in (("ours", ours), ("direct", direct))}
    return Row(item, mine, theirs, difference, tolerance, target, mine / theirs, {**peaks, "repeats": repeats})


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the wall time of one call."""
    wait(device)
    begin = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - begin


def wait(device: torch.device) -> None:
    """Let a GPU finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak memory during a call, in bytes: of the process on a CPU, of what is allocated on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # what earlier calls freed and the allocator kept would hide this one's peak
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    call()
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    return 0


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": str(device),
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "bf16": cpu_bf16() if device.type == "cpu" else True,
    }


def cpu_bf16() -> bool:
    """Whether the CPU has bf16 matrix units or instructions."""
    with suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def table(rows: list[Row]) -> str:
    """Return the rows as a markdown table."""
    lines = [
        "| item | ours, s | direct, s | ratio | target | difference | peak, MiB (ours / direct) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    for row in rows:
        target = "–" if row.target is None else f"≤ {row.target:.3g}{'' if row.met else ' **missed**'}"
        peaks = [row.more.get(f"{name}_peak_bytes") for name in ("ours", "direct")]
        shown = " / ".join("–" if value is None else f"{value / 2**20:,.0f}" for value in peaks)
        lines.append(
            f"| {row.item} | {number(row.ours, '.4f')} | {number(row.direct, '.4f')} | {number(row.ratio, '.3f')} | {target} | "
            f"{number(row.difference, '.0e')} | {shown} |"
        )
    return "\n".join(lines)


def random(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)
