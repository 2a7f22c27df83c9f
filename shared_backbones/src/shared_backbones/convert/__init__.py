"""Foreign checkpoints to one safetensors file per tower, strictly, in a separate process that admits tensors only."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared_backbones.errors import TowerError, WeightsError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from shared_backbones.convert.folder import Folder

    Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Converter:
    """One foreign layout of one tower.

    ``recognise``: do these key names look like this layout? ``translate``: the tower's variant, its tensors under the
    tower's own names (a key that the layout does not know keeps its name and is reported), and the names dropped on purpose.
    ``shapes``: what a table must hold that comes beside a tower's weights; None for the weights themselves. ``cfg``: values that
    the table ``cfg`` beside the tensors must hold; None where the layout has no such table.
    """

    tower: str
    recognise: Callable[[set[str]], bool]
    translate: Callable[[Tensors], tuple[str | None, Tensors, list[str]]]
    shapes: Mapping[str, tuple[int, ...]] | None = None
    cfg: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Plan:
    """What becomes of a folder's tensors.

    ``parts``: the tower's names, each with the tensors whose mean it is, nearly always one; the file keeps their type. ``dropped``:
    names left out on purpose. ``record``: what the file's metadata say of choices.
    """

    variant: str | None
    parts: Mapping[str, Sequence[Tensor]]
    dropped: tuple[str, ...]
    record: Mapping[str, str]


@dataclass(frozen=True)
class FolderConverter:
    """One foreign layout of one tower that is a folder: ``config.json`` and tensors in shards.

    ``recognise``: as a `Converter`'s. ``plan``: a folder and the options that were given to its plan. ``options``: their names.
    """

    tower: str
    recognise: Callable[[set[str]], bool]
    plan: Callable[[Folder, Mapping[str, str]], Plan]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """What a conversion did: the file it wrote, for which tower and variant, with which converter, from what, with which choices."""

    source: str
    source_sha256: str
    file: str
    tower: str
    variant: str
    converter: str
    tensors: int
    dropped: tuple[str, ...]
    record: Mapping[str, str] = field(default_factory=dict)


def formats() -> list[str]:
    """Names of all converters: the files of this folder that are one."""
    reading = ("__main__", "archive", "folder", "streaming")
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in reading)


def load_converter(name: str) -> Converter | FolderConverter:
    """The converter of a name. WeightsError for an unknown one."""
    if name not in formats():
        raise WeightsError(f"converter: unknown name {name!r}{nearest(name, formats())}")
    return importlib.import_module(f"shared_backbones.convert.{name}").CONVERTER


def convert_in_process(
    source: Path,
    target: Path,
    converter: str | None = None,
    tower: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Conversion:
    """Read, translate, compare with the tower, write; `__main__` calls it. ``converter`` None: recognised by its keys.

    Raises WeightsError, one line, listing every missing and unknown key and every wrong shape; TowerError for options that the
    converter does not take, or needs.
    """
    given = dict(options or {})
    if source.is_dir():
        return _convert_folder(source, target, converter, tower, given)
    if given:
        raise TowerError(f"{', '.join(given)}: {source} is one file, whose converters take no options; leave them out")
    return _convert_file(source, target, converter, tower)


def _convert_folder(
    source: Path, target: Path, converter: str | None, tower: str | None, given: Mapping[str, str]
) -> Conversion:
    from shared_backbones.convert.folder import read_folder
    from shared_backbones.convert.streaming import write_streamed
    from shared_backbones.registry import build
    from shared_backbones.weights import compare

    folder = read_folder(source)
    name = converter or _recognise(source, folder.tensors, tower)
    chosen = load_converter(name)
    if not isinstance(chosen, FolderConverter):
        raise WeightsError(f"{source}: a folder; the layout {name} is one file")
    if tower is not None and chosen.tower != tower:
        raise WeightsError(f"{source}: holds weights of tower {chosen.tower}, asked for {tower}")
    for option in given:
        if option not in chosen.options:
            raise TowerError(f"option {option!r} of converter {name}{nearest(option, chosen.options)}")
    plan = chosen.plan(folder, given)
    shapes = build(chosen.tower, "full", {"variant": plan.variant} if plan.variant else {}, device="meta")
    if faults := compare(shapes.net.state_dict(), {key: parts[0] for key, parts in plan.parts.items()}):
        raise WeightsError(f"{source}: not the layout {name} of tower {chosen.tower}: {'; '.join(faults)}")
    metadata = {**_metadata(chosen.tower, shapes.info.variant, name, source, folder.sha256), **plan.record}
    with _replacing(target) as part:
        try:
            write_streamed(part, plan.parts, metadata)
        except WeightsError as error:
            raise WeightsError(f"{source}: {error}") from None
    return Conversion(
        str(source), folder.sha256, str(target), chosen.tower, shapes.info.variant, name, len(plan.parts), plan.dropped,
        dict(plan.record),
    )  # fmt: skip


def _metadata(tower: str, variant: str, converter: str, source: Path, digest: str) -> dict[str, str]:
    return {
        "tower": tower, "size": "full", "variant": variant, "converter": converter, "source": source.name, "source_sha256": digest,
    }  # fmt: skip


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A name beside the target, which takes its place when the block is through and leaves nothing where it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _convert_file(source: Path, target: Path, converter: str | None, tower: str | None) -> Conversion:
    import torch
    from safetensors.torch import save_file

    from shared_backbones.convert.archive import read_cfg, read_tensors
    from shared_backbones.registry import build
    from shared_backbones.weights import compare, sha256_of

    tensors = read_tensors(source)
    name = converter or _recognise(source, tensors, tower)
    chosen = load_converter(name)
    if not isinstance(chosen, Converter):
        raise WeightsError(f"{source}: one file; the layout {name} is a folder with config.json and shards")
    if tower is not None and chosen.tower != tower:
        raise WeightsError(f"{source}: holds weights of tower {chosen.tower}, asked for {tower}")
    if chosen.cfg is not None and (faults := _deviations(chosen.cfg, read_cfg(source))):
        raise WeightsError(f"{source}: not the layout {name} of tower {chosen.tower}: {'; '.join(faults)}")
    try:
        variant, translated, dropped = chosen.translate(tensors)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    if chosen.shapes is None:
        tower_itself = build(chosen.tower, "full", {"variant": variant} if variant else {}, device="meta")
        expected, label = tower_itself.net.state_dict(), tower_itself.info.variant
    else:
        expected = {key: torch.empty(shape, device="meta") for key, shape in chosen.shapes.items()}
        label = variant or name
    if faults := compare(expected, translated):
        raise WeightsError(f"{source}: not the layout {name} of tower {chosen.tower}: {'; '.join(faults)}")
    digest = sha256_of(source)
    metadata = _metadata(chosen.tower, label, name, source, digest)
    plain = {
        k: (t.to(torch.float32) if t.is_floating_point() else t).contiguous().clone() for k, t in translated.items()
    }
    with _replacing(target) as part:
        save_file(plain, part, metadata=metadata)
    return Conversion(str(source), digest, str(target), chosen.tower, label, name, len(plain), tuple(sorted(dropped)))


def _deviations(expected: Mapping[str, Any], cfg: Mapping[str, Any] | None) -> list[str]:
    if cfg is None:
        return ["no table cfg beside the tensors, which says what shapes do not; give the file as it was released"]
    return [
        f"cfg {key} {cfg[key]!r} instead of {value!r}" if key in cfg else f"cfg without {key}; expected {value!r}"
        for key, value in expected.items()
        if key not in cfg or cfg[key] != value
    ]


def _recognise(source: Path, tensors: Mapping[str, Tensor], tower: str | None) -> str:
    known = {name: load_converter(name) for name in formats()}
    found = [
        name
        for name, converter in known.items()
        if isinstance(converter, FolderConverter) == source.is_dir() and converter.recognise(set(tensors))
    ]
    if tower is not None and found:
        fitting = [name for name in found if known[name].tower == tower]
        if not fitting:
            raise WeightsError(f"{source}: looks like {' or '.join(found)}, which is not for tower {tower}")
        found = fitting
    if len(found) != 1:
        sample = ", ".join(sorted(tensors)[:4])
        raise WeightsError(
            f"{source}: {len(tensors)} tensors ({sample}, …) look like {' and '.join(found) or 'none'} of the known layouts "
            f"{', '.join(formats())}; name one with converter="
        )
    return found[0]


def convert_file(
    source: str | Path,
    target: str | Path,
    converter: str | None = None,
    tower: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Conversion:
    """Convert in a fresh process, so that nothing of a foreign file ever lives in this one. Errors as above."""
    source, target = Path(source), Path(target)
    if not source.exists():
        raise WeightsError(f"{source}: no such file; expected a checkpoint to convert")
    command = [sys.executable, "-P", "-m", "shared_backbones.convert", str(source), str(target)]
    command += ["--converter", converter] if converter else []
    command += ["--tower", tower] if tower else []
    command += [f"--option={name}={value}" for name, value in (options or {}).items()]
    # The process must import this very package, also where it was found through sys.path alone.
    search = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    for error in (WeightsError, TowerError):
        if done.returncode == error.exit_code and done.stderr.strip():
            raise error(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise WeightsError(f"{source}: conversion process ended with code {done.returncode}: {tail[0]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return Conversion(**{**answer, "dropped": tuple(answer["dropped"])})


def as_json(conversion: Conversion) -> str:
    """A conversion as one line of JSON."""
    return json.dumps(asdict(conversion))
