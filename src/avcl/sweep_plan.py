"""A sweep plan: a table of experiments (configurations × orders × variants × seeds), and which of its runs exist already."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from avcl.sweep_orders import RANDOM, Orders, orders_of
from avcl.sweep_stale import Current
from avcl_core.config.load import COMPONENT_NAMES, Source, read, validate
from avcl_core.config.options import Options
from avcl_core.config.presets import find_config, preset_folder
from avcl_core.config.run import Reference, RunOptions, load_run
from avcl_core.errors import ConfigError, nearest
from avcl_core.plugins import GROUPS

State = Literal["done", "stopped", "failed", "to run"]
Entry = tuple[Path, dict[str, Any]]
"""A run folder and its ``run.json``."""

OWN = {
    "seed": "seeds",
    "label": "variants",
    "references": "variants with method.name=single and method.name=joint",
}
OF_ORDERS = {"stream.tasks": "orders", "stream.name": "orders, which name the streams"}
"""Keys of a run that a plan sets itself, and where."""

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Plan(Options):
    """The file of a plan.

    Attributes:
        title: heading of its table.
        configs: ``<package>/<name>`` for a configuration of a task package (``ave/embedded``), a path below ``configs/`` for one
            of avcl's own (``runs/embedded``), or a file.
        variants: name → overrides, in the order of the table; the others are compared with the first.
        seeds: seeds of every variant.
        orders: name → tasks of the stream in this order, and ``random`` → how many more to draw; the same tasks in all. Without, the
            configurations keep theirs. Variants that are no sequence (single, joint) run in the first order alone.
        order_seed: what random orders are drawn from.
        plain_mean: also print averages over test sets with different metrics, each in percent of its ideal, as some papers do.
        overrides: for all runs; a variant's come after them.
    """

    title: str = Field(min_length=1)
    configs: Names
    variants: dict[Annotated[str, Field(min_length=1)], tuple[str, ...]] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    orders: dict[Annotated[str, Field(min_length=1)], Names | PositiveInt] = Field(default_factory=dict)
    order_seed: NonNegativeInt = 0
    plain_mean: bool = False
    overrides: tuple[str, ...] = ()

    @field_validator("orders")
    @classmethod
    def _counts(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name, value in values.items():
            if isinstance(value, int) and name != RANDOM:
                raise ValueError(f"{name!r}: expected a list of tasks; a number of orders to draw is called {RANDOM}")
            if not isinstance(value, int) and name.startswith(RANDOM):
                raise ValueError(f"{name!r}: this name is for orders that are drawn; give the list another one")
        return values

    @field_validator("configs", "seeds")
    @classmethod
    def _once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is there twice; remove one")
        return values


@dataclass(frozen=True)
class Planned:
    """One run of a plan.

    Attributes:
        config: the name that the plan gives; ``path``: its file.
        overrides: everything that is laid over it, seed and label included.
        order: name of the order of its tasks; empty where the plan has none.
        label: what the run is called: the first variant with the same configuration.
        options: the validated configuration.
    """

    config: str
    path: Path
    variant: str
    seed: int
    overrides: tuple[str, ...]
    label: str
    options: RunOptions = field(compare=False)
    order: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Label and configuration digest (the seed is in it): runs with the same key are the same run."""
        return self.label, self.options.digest

    @property
    def title(self) -> str:
        """What messages call the run."""
        return " · ".join(part for part in (self.config, self.order, self.variant, f"seed {self.seed}") if part)


@dataclass(frozen=True)
class Found:
    """What there is of a planned run.

    Attributes:
        folder: the run that is done, or that can go on.
        differs: where there are stale runs alone, in what the newest of them differs from newer runs of the plan.
    """

    state: State
    folder: Path | None = None
    differs: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The state as lists show it; a stale run has to run again."""
        return f"stale ({', '.join(self.differs)} changed)" if self.differs else self.state


@dataclass(frozen=True)
class Sweep:
    """A validated plan with all its runs, in the order in which they run. Variants may share a run (``Planned.key``)."""

    name: str
    plan: Plan
    runs: tuple[Planned, ...]
    orders: Mapping[str, Orders] = field(default_factory=dict)
    """Configuration → its orders; empty where the plan has none."""

    @property
    def root(self) -> Path:
        """The folder of the run folders."""
        return self.runs[0].options.runs

    @property
    def folder(self) -> Path:
        """The folder of the plan's table and report."""
        return self.root / self.name

    @property
    def todo(self) -> tuple[Planned, ...]:
        """The runs without those that another variant's run stands for."""
        first: dict[tuple[str, str], Planned] = {}
        for run in self.runs:
            first.setdefault(run.key, run)
        return tuple(first.values())

    def find(self) -> dict[Planned, Found]:
        """Return what there is of every run, by what the run folders say.

        Runs that were computed from other data or weights than a newer one that is done are stale and do not count.
        """
        index: dict[tuple[str, str], list[Entry]] = {}
        for path in sorted(self.root.glob("*/*/*/run.json")):
            record = _record(path)
            if record is not None:
                index.setdefault((record["label"], record["digests"]["configuration"]), []).append(
                    (path.parent, record)
                )
        here, current = Path.cwd(), Current()
        entries: dict[Planned, list[Entry]] = {}
        for run in self.runs:
            places = _places(json.loads(run.options.model_dump_json()), here)
            entries[run] = [entry for entry in index.get(run.key, []) if _same_places(*entry, places)]
            for folder, record in entries[run]:
                if record["status"] == "done":
                    current.add(run, folder.name, record["digests"])
        return {run: _best(run, same, current) for run, same in entries.items()}


def is_plan(source: Source) -> bool:
    """Whether a configuration is a sweep plan rather than a run."""
    return bool({"configs", "variants", "seeds"} & source.tree.keys())


def find_plan(name: str) -> Path:
    """Return a file, a shipped plan, or another shipped configuration of that name."""
    return find_config(name, "avcl", kind="sweeps")


def load_sweep(path: Path, overrides: Sequence[str] = (), seeds: Sequence[int] = ()) -> Sweep:
    """Read a plan and validate every run of it.

    Args:
        overrides: for all runs, after those of the plan.
        seeds: instead of the plan's.

    Raises:
        ConfigError: the plan, a configuration that it names or one of its runs is not valid; with file, line and nearest name.
    """
    source = read(path)
    plan = validate(Plan, source)
    if seeds:
        plan = validate(Plan, source, {**source.tree, "seeds": list(seeds)})
    general = (*plan.overrides, *overrides)
    own = OWN | (OF_ORDERS if plan.orders else {})
    _refuse_own(general, f"{source.place(('overrides',))}: overrides" if plan.overrides else "sweep", own)
    for variant, given in plan.variants.items():
        _refuse_own(given, f"{source.place(('variants', variant))}: variants.{variant}", own, also=("runs",))
    runs: list[Planned] = []
    orders: dict[str, Orders] = {}
    for config in plan.configs:
        file = _configuration(config, source)
        labels: dict[str, str] = {}
        if plan.orders:
            tasks = read(file, general).tree.get("stream", {}).get("tasks", ())
            orders[config] = orders_of(plan.orders, tasks, plan.order_seed, f"{source.place(('orders',))}: {config}")
        for order in orders.get(config, {"": ()}):
            for variant, given in plan.variants.items():
                for seed in plan.seeds:
                    where = f"{source.place(('variants', variant))}: {config}, variant {variant!r}"
                    sequence = (orders.get(config, {}), order)
                    runs.append(_planned(config, file, variant, (general, given), seed, labels, where, sequence))
    _one(runs, "runs", lambda run: str(run.options.runs), "a plan has one folder of runs; give runs=FOLDER")
    _one(runs, "stream.protocol", lambda run: run.options.stream.protocol, "a table compares runs of one protocol")
    return Sweep(path.stem, plan, tuple(runs), orders)


def _planned(
    config: str,
    file: Path,
    variant: str,
    layers: tuple[Sequence[str], Sequence[str]],
    seed: int,
    labels: dict[str, str],
    where: str,
    sequence: tuple[Orders, str],
) -> Planned:
    """Validate one run; ``labels``: configuration digest → the first variant that has it; ``sequence``: all orders, and its own."""
    try:
        own = (*layers[1], *_sequence(file, (*layers[0], *layers[1]), *sequence))
        overrides = (*_without_replaced(file, *layers), *own, f"seed={seed}")
        options, _ = load_run(read(file, overrides))
        label = labels.setdefault(options.digest, variant)
        # In quotes, so that YAML takes it for a string whatever it looks like.
        overrides = (*overrides, f"label={json.dumps(label, ensure_ascii=False)}")
        options = options.model_copy(update={"label": label})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return Planned(config, file, variant, seed, overrides, label, options, sequence[1])


def _sequence(file: Path, overrides: Sequence[str], orders: Orders, order: str) -> list[str]:
    """Return the overrides by which a run takes its tasks in an order and trains no references of its own."""
    tree = read(file, overrides).tree
    found = ["references=[]"] if tree.get("references") else []
    if orders:
        method = tree.get("method")
        once = isinstance(method, dict) and method.get("name") in get_args(Reference)
        tasks = next(iter(orders.values())) if once else orders[order]
        found.append(f"stream.tasks=[{','.join(tasks)}]")
        if tree["stream"].get("name"):
            found.append(
                'stream.name=""'
            )  # A stream is another one in another order, and by default its tasks name it.
    return found


def _without_replaced(file: Path, general: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return the general overrides without the options of components that a variant replaces by others."""
    kept = list(general)
    if not any(text.partition("=")[0] in COMPONENT_NAMES for text in own):
        return kept
    below = read(file, general).tree
    for text in own:
        key, _, value = text.partition("=")
        if key not in COMPONENT_NAMES:
            continue
        component = key.partition(".")[0]
        before = below.get(component)
        if not isinstance(before, dict) or before.get("name") != value.strip():
            kept = [text for text in kept if not text.startswith(f"{component}.")]
    return kept


def _refuse_own(overrides: Sequence[str], where: str, own: Mapping[str, str], also: Sequence[str] = ()) -> None:
    for text in overrides:
        key = text.partition("=")[0]
        if key in own:
            raise ConfigError(f"{where}: {text!r}: a plan sets {key} itself; use {own[key]}")
        if key in also:
            raise ConfigError(f"{where}: {text!r}: is for all runs of a plan; put it in overrides")


def _one(runs: Sequence[Planned], what: str, value: Any, advice: str) -> None:
    found = {value(run): run for run in reversed(runs)}
    if len(found) > 1:
        listed = ", ".join(f"{value} ({run.config} · {run.variant})" for value, run in reversed(found.items()))
        raise ConfigError(f"runs of the plan differ in {what}: {listed}; {advice}")


def _configuration(name: str, source: Source) -> Path:
    """Return the file of a plan's configuration."""
    if Path(name).is_file():
        return Path(name)
    packages = {point.value.partition(":")[0].partition(".")[0] for point in entry_points(group=GROUPS["task"])}
    short = {package.removeprefix("avcl_"): package for package in sorted(packages)}
    known: dict[str, Path] = {}
    for prefix, package in (("", "avcl"), *((f"{name}/", package) for name, package in short.items())):
        try:
            folder = preset_folder(package)
        except ConfigError:  # a package without configurations
            continue
        for path in sorted(folder.rglob("*.yaml")):
            inside = path.relative_to(folder).with_suffix("").as_posix()
            if prefix or not inside.startswith(("sweeps/", "streams/")):
                known[prefix + inside] = path
    if name not in known:
        raise ConfigError(
            f"{source.place(('configs',))}: configs: {name!r}: no such file, and no installed package ships it"
            f"{nearest(name, list(known))}"
        )
    return known[name]


def _record(path: Path) -> dict[str, Any] | None:
    """Read the ``run.json`` of a labelled run; another file is none of a plan's."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("label") and "digests" in record else None


def _places(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The places that results come from: with other data or weights a run is another one, whatever its configuration says."""
    found = {"data.root": config["data"]["root"]}
    found |= {f"towers.{name}": tower["checkpoint"] for name, tower in config["towers"].items() if tower["checkpoint"]}
    found |= {f"init.{name}": path for name, path in config["init"].items()}
    return {name: str((folder / path).resolve()) for name, path in found.items()}


def _same_places(folder: Path, record: dict[str, Any], places: dict[str, str]) -> bool:
    """Whether a run with the configuration of a planned one (its digest says so) also read what that would read."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return _places(config, Path(record["cwd"])) == places


def _best(run: Planned, entries: Sequence[Entry], current: Current) -> Found:
    """Return the run that stands for a planned one: of several, what is done comes first, then the newest."""
    differs = {folder: current.differing(run, folder.name, record["digests"]) for folder, record in entries}
    fresh = [entry for entry in entries if not differs[entry[0]]]
    if fresh:
        folder, record = max(fresh, key=lambda entry: (entry[1]["status"] == "done", entry[0].name))
        return Found(state_of(record["status"]), folder)
    newest = max(differs, key=lambda folder: folder.name, default=None)
    return Found("to run") if newest is None else Found("to run", differs=differs[newest])


def state_of(status: str) -> State:
    """A run that says that it is running was killed, or another process is at it, which its lock will tell."""
    return {"done": "done", "failed": "failed"}.get(status, "stopped")  # type: ignore[return-value]
