"""Writes an imported run: a run folder with the tensors of a foreign checkpoint, which evaluates like any other run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from avcl_core.collective import current
from avcl_core.config.load import Source, read
from avcl_core.config.presets import find_config
from avcl_core.config.run import RunOptions, load_run
from avcl_core.errors import ConfigError, IntegrityError
from avcl_core.importing.adapters import Adapters, has_routers, infer, is_adapter
from avcl_core.importing.foreign import Foreign, read_foreign
from avcl_core.importing.imported_run import fresh, write_imported
from avcl_core.importing.published import Published, published
from avcl_core.importing.tensors import Trained, trained_tensors
from avcl_core.importing.towers import differing, shape_of, tower_weights, write_tower
from avcl_core.ownership import Owners
from avcl_core.running.assemble import assemble, notes
from avcl_core.running.origin import warm_notes
from avcl_core.running.provide import Bar, silent
from avcl_core.seeding import seed_step
from avcl_core.training.position import Position

FROM = ("avmoe",)
"""Families of checkpoints that are read."""
RELEASED = {"audio_placement": "after_block", "imported": True}
"""Options under which the model computes what the released code computes (avmoe.md 3.2)."""


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        run: the run folder.
        source, sha256: the checkpoint.
        model: name and options of the model that the checkpoint says.
        towers: modality → ``as configured``, or the file that was written, with its digest and what differs.
        gates: modality → whether the checkpoint's experts have output gates.
        dropped: keys that were not used, because nothing uses them.
        native: whether the run is the native form, a different model.
        notes: what reports say.
    """

    run: str
    source: str
    sha256: str
    model: dict[str, Any]
    towers: dict[str, Any]
    gates: dict[str, bool]
    dropped: tuple[str, ...]
    native: bool
    notes: tuple[str, ...]


def import_run(
    file: Path,
    out: Path,
    kind: str,
    overrides: Sequence[str] = (),
    to_native: bool = False,
    command: Sequence[str] = (),
    bar: Bar = silent,
) -> Imported:
    """Import a checkpoint of AVMOE's code as a run folder.

    Args:
        file: the checkpoint, as its authors' code wrote it.
        out: the run folder to make; new or empty.
        kind: ``ave``, ``avvp``, ``avs_s4``, ``avs_ms3``, ``avqa`` or ``grounding``.
        overrides: of the task's configuration, for example ``data.root=…``; not of the model, which the checkpoint says.
        to_native: audio residuals around the sublayers and latent for dense attention: a different model, which may be trained
            on (``avcl resume``).

    Raises:
        ConfigError: an unknown kind, an override of the model, or ``out`` has content.
        IntegrityError: the file does not fit, named by its key; or data or weights are missing.
    """
    about = published(kind)
    if not file.is_file():
        raise IntegrityError(f"{file}: no such file; expected a checkpoint to import")
    for text in overrides:
        if text.partition("=")[0].split(".")[0] in ("model", "init"):
            raise ConfigError(f"override {text!r}: the checkpoint says what the model is; leave it out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; name a new folder for the imported run")
    given = [*_as_overrides(f"tasks.{about.task}", about.settings), *overrides]
    options = load_run(_configuration(about, given))[0]
    if options.stream.tasks != (about.task,):
        raise ConfigError(f"stream.tasks: {list(options.stream.tasks)}; an imported run has the one task {about.task}")
    foreign = read_foreign(file)
    with fresh(out):
        return _write(foreign, about, kind, options, given, out, to_native, command, bar)


def _write(
    foreign: Foreign,
    about: Published,
    kind: str,
    options: RunOptions,
    given: Sequence[str],
    out: Path,
    to_native: bool,
    command: Sequence[str],
    bar: Bar,
) -> Imported:
    shapes = {modality: shape_of(modality, tower) for modality, tower in options.towers.items()}
    adapters = _adapters(foreign, about, shapes)
    model = _model(adapters, to_native)
    towers, dropped = _towers(foreign, options, shapes, out)
    changes = [f"towers.{name}.checkpoint={json.dumps(t['file'])}" for name, t in towers.items() if "file" in t]
    source = _configuration(about, [*given, f"model.name={model['name']}", *_as_overrides("model", model), *changes])
    options, parts = load_run(source)
    fabric = Fabric(accelerator="cpu", devices=1)
    assembly = assemble(options, parts, fabric, current(fabric.device), bar)
    method = assembly.build()
    session = assembly.sessions[0]
    for experience in session.experiences:
        seed_step(options.seed, "grow", experience.name)
        method.model.grow(experience)
    trained = trained_tensors(foreign, about, adapters, method.model, to_native)
    Owners(method.model).load(trained.state)
    marks = {about.task: f"{foreign.file.name}, sha256 {foreign.sha256[:12]}"} if about.selected_on_test else {}
    said = (*notes(assembly), *warm_notes(marks), *_notes(foreign, about, adapters, trained, to_native))
    gates = dict(adapters.gates) if adapters else {}
    done = Imported(
        str(out), str(foreign.file), foreign.sha256, model, towers, gates, (*trained.dropped, *dropped), to_native, said
    )
    imported = {"from": FROM[0], "task": kind, **asdict(done)}
    read = {"source": done.source, "sha256": done.sha256}
    # A native run has everything before it, so it can be trained on; another one has nothing left to do.
    position = Position(phase="before" if done.native else "done")
    write_imported(out, assembly, method, position, imported, read, said, command, marks)
    return done


def _configuration(about: Published, overrides: Sequence[str]) -> Source:
    return read(find_config(about.config, about.package), overrides)


def _as_overrides(prefix: str, values: Mapping[str, Any]) -> list[str]:
    return [f"{prefix}.{name}={json.dumps(value)}" for name, value in values.items() if name != "name"]


def _adapters(foreign: Foreign, about: Published, shapes: Mapping[str, Any]) -> Adapters | None:
    """What the adapters are; nothing where the kind has none, or where they are another method's and are left out."""
    if not about.adapters:
        return None
    listed = [key for key in foreign.tensors if is_adapter(key)]
    if about.foreign_adapters and listed and not has_routers(listed):
        return None
    return infer(foreign.tensors, shapes["visual"], shapes["audio"], str(foreign.file))


def _model(adapters: Adapters | None, to_native: bool) -> dict[str, Any]:
    if adapters is None:
        # HTS-AT's final norm is applied in no released model (avmoe.md 3.1).
        return {"name": "frozen", "unnormed": ["audio"]}
    model = {"name": "avmoe", **adapters.options}
    if not to_native:
        return model | RELEASED
    if model["uni_attention"] == "dense":
        model["uni_attention"] = "latent"
    return model | {"audio_placement": "sublayers", "imported": False}


def _towers(
    foreign: Foreign, options: RunOptions, shapes: Mapping[str, Any], out: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Write the towers that are not the configured ones; return what was found of each, and unused keys."""
    found: dict[str, Any] = {}
    dropped: tuple[str, ...] = ()
    for modality, tower in options.towers.items():
        assert modality != "language"  # shape_of has refused it
        weights = tower_weights(foreign, modality, shapes[modality])
        dropped += weights.dropped
        if not weights.tensors:
            found[modality] = {"weights": "as configured; the checkpoint has none"}
            continue
        different = differing(weights, modality, tower)
        if different == ():
            found[modality] = {"weights": "as configured"}
            continue
        target = (out / "towers" / f"{modality}.safetensors").resolve()
        digest = write_tower(weights, shapes[modality], foreign, target)
        what = "not compared: the configured file is not here" if different is None else list(different)
        found[modality] = {"weights": "of the checkpoint", "file": str(target), "sha256": digest, "differing": what}
    return found, dropped


def _notes(
    foreign: Foreign, about: Published, adapters: Adapters | None, trained: Trained, to_native: bool
) -> list[str]:
    said = [f"imported from {foreign.file.name} (sha256 {foreign.sha256[:12]}), written by the papers' own code"]
    if adapters is None and about.adapters:
        said.append(
            "another method's adapters were left out: the head stands on plain towers, for runs that start from it"
        )
    if to_native and adapters is not None:
        said.append(
            "native form: audio residuals around the sublayers"
            + (", latent for dense attention" if trained.fresh else "")
            + "; a different model from the published one, to be trained on"
        )
    for key, rows in about.surplus.items():
        if key in foreign.tensors and len(foreign.tensors[key]) == rows:
            said.append(f"{key}: of {rows} rows those were kept that have an answer")
    return said
