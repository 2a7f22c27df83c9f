"""Writes the run of AVQACL-MoE's authors' experts and anchors: a run folder that is evaluated like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_fabric import Fabric

from avcl_core.collective import current
from avcl_core.config.load import read
from avcl_core.config.run import load_run
from avcl_core.errors import ConfigError, IntegrityError
from avcl_core.importing.experts import Files, expert_tensors, refuse_other_names
from avcl_core.importing.foreign import read_foreign
from avcl_core.importing.imported_run import fresh, write_imported
from avcl_core.models.anchor_experts import AnchorExperts
from avcl_core.ownership import Owners
from avcl_core.running.assemble import assemble, notes
from avcl_core.running.provide import Bar, silent
from avcl_core.seeding import seed_step
from avcl_core.training.position import Position

FROM = "avqacl_moe"
TEXT = "the authors' anchors of text are means over template, answers and padding too, and all are running means over micro-batches"


@dataclass(frozen=True)
class ImportedExperts:
    """What an import did.

    Attributes:
        run: the run folder.
        files: experience → name and SHA-256 of its expert and of its anchor.
        dropped: keys of anchors that the model does not compare.
        notes: what reports say.
    """

    run: str
    files: Mapping[str, Mapping[str, str]]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]


def import_experts(
    experts: Mapping[str, Path],
    anchors: Mapping[str, Path],
    out: Path,
    config: Path,
    overrides: Sequence[str] = (),
    command: Sequence[str] = (),
    bar: Bar = silent,
) -> ImportedExperts:
    """Import experts and anchors as a run folder, which has nothing left to train.

    Args:
        experts, anchors: experience → file, as its authors' code wrote it; every experience of the stream has both.
        out: the run folder to make; new or empty.
        config: a configuration of the model ``anchor_experts``, whose towers are the ones that the experts were trained on.

    Raises:
        ConfigError: ``out`` has content, the model is another one, or files and experiences do not match.
        IntegrityError: a file does not fit, named by its key; or data or weights are missing.
    """
    for file in (*experts.values(), *anchors.values()):
        if not file.is_file():
            raise IntegrityError(f"{file}: no such file; expected an expert or an anchor to import")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; name a new folder for the imported run")
    options, parts = load_run(read(config, overrides))
    if options.model["name"] != "anchor_experts":
        raise ConfigError(
            f"{config}: model {options.model['name']}; experts and anchors are imported for anchor_experts"
        )
    fabric = Fabric(accelerator="cpu", devices=1)
    assembly = assemble(options, parts, fabric, current(fabric.device), bar)
    method = assembly.build()
    experiences = assembly.sessions[0].experiences
    names = [experience.name for experience in experiences]
    for given in (experts, anchors):
        refuse_other_names(given, names)
    for experience in experiences:
        seed_step(options.seed, "grow", experience.name)
        method.model.grow(experience)
    assert isinstance(method.model, AnchorExperts)
    files = {name: Files(read_foreign(experts[name]), read_foreign(anchors[name])) for name in names}
    owners = Owners(method.model)
    found = expert_tensors(files, owners, names)
    owners.load(found.state)
    record = {
        name: {
            "expert": pair.expert.file.name, "expert_sha256": pair.expert.sha256,
            "anchor": pair.anchor.file.name, "anchor_sha256": pair.anchor.sha256,
        }
        for name, pair in files.items()
    }  # fmt: skip
    said = (*notes(assembly), "experts and anchors were trained by the papers' own code; " + TEXT)
    done = ImportedExperts(str(out), record, found.dropped, said)
    # The model is ours as it is: nothing had to be built after the authors' code.
    imported = {"from": FROM, "native": True, **asdict(done)}
    with fresh(out):
        write_imported(out, assembly, method, Position(phase="done"), imported, {"files": record}, said, command)
    return done
