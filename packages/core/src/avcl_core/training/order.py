"""The order of samples is a pure function of seed, session, epoch and key, so any step can be found again after a stop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from avcl_core.errors import ConfigError
from avcl_core.seeding import derive, ordered
from avcl_core.stream import Experience, Session


@dataclass(frozen=True)
class Portion:
    """The samples of one optimiser step: keys of one experience."""

    experience: Experience
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Pace:
    """How a session goes through the samples of one of its experiences.

    Attributes:
        batch_size: samples per optimiser step.
        passes: how often each sample is seen in the session; as often as there are epochs by default.
        group: key → what it shares with others; keys of a group stand together in each pass.
    """

    batch_size: int
    passes: int | None = None
    group: Callable[[str], str] | None = None


def epoch_plan(
    session: Session, seed: int, epoch: int, paces: Mapping[str, Pace], least: int = 1, epochs: int = 1
) -> list[Portion]:
    """Return the steps of an epoch.

    Every training sample of every experience of the session occurs once; the batches of several experiences alternate
    in random order. An experience whose pace has ``passes`` is gone through that often in all epochs together, in equal parts;
    where these are less than a sample, some epochs have no step of it.

    Args:
        paces: experience → how it is gone through.
        least: smallest size of a last, ragged batch (the number of ranks); a smaller one joins the batch before it.
        epochs: epochs of the session.

    Raises:
        ConfigError: an experience has fewer than ``least`` training samples, in all or for this epoch; a batch is smaller than
            ``least``; or no experience has any for this epoch.
    """
    portions: list[tuple[int, Portion]] = []
    often = {e.name: epochs if (own := paces[e.name].passes) is None else own for e in session.experiences}
    for experience in session.experiences:
        size = paces[experience.name].batch_size
        if size < least:
            raise ConfigError(
                f"experience {experience.name}: training.batch_size is {size}; {least} ranks need at least one sample each"
            )
        if len(experience.train) < least:
            raise ConfigError(
                f"experience {experience.name} has {len(experience.train)} training samples; at least {least} are needed, one per"
                " rank"
            )
        keys = _part(experience, seed, epoch, epochs, often[experience.name], paces[experience.name].group)
        if 0 < len(keys) < least:
            raise ConfigError(
                f"experience {experience.name}: {_share(experience, often, epochs)} leave epoch {epoch + 1} {len(keys)} of them, fewer"
                f" than the {least} ranks; set training.tasks.{experience.task}.epochs higher, training.epochs lower, or"
                " take fewer ranks"
            )
        if not keys:
            continue
        cuts = list(range(0, len(keys), size))
        if len(cuts) > 1 and len(keys) - cuts[-1] < least:
            cuts.pop()
        for begin, end in zip(cuts, [*cuts[1:], len(keys)], strict=True):
            rank = derive(seed, "alternate", experience.name, epoch, begin)
            portions.append((rank, Portion(experience, tuple(keys[begin:end]))))
    if not portions:
        shares = "; ".join(f"{e.name}: {_share(e, often, epochs)}" for e in session.experiences)
        raise ConfigError(
            f"epoch {epoch + 1} has no training sample ({shares}); set training.epochs lower, or"
            f" training.tasks.{session.experiences[0].task}.epochs higher"
        )
    return [portion for _, portion in sorted(portions, key=lambda entry: entry[0])]


def _share(experience: Experience, passes: Mapping[str, int], epochs: int) -> str:
    return f"{passes[experience.name]} passes over {len(experience.train)} training samples in {epochs} epochs"


def _part(
    experience: Experience, seed: int, epoch: int, epochs: int, passes: int, group: Callable[[str], str] | None
) -> list[str]:
    """The keys of an epoch: its share of ``passes`` shuffled passes, one behind the other."""
    count = len(experience.train)
    begin, end = (edge * passes * count // epochs for edge in (epoch, epoch + 1))
    found: list[str] = []
    for number in range(begin // count if count else 0, -(-end // count) if count else 0):
        keys = ordered(experience.train, seed, "order", experience.name, number)
        if group is not None:
            first: dict[str, int] = {}
            places = {key: first.setdefault(group(key), place) for place, key in enumerate(keys)}
            keys = sorted(keys, key=places.__getitem__)
        found += keys[max(0, begin - number * count) : end - number * count]
    return found


def shards(count: int, parts: int) -> list[range]:
    """Cut ``range(count)`` into ``parts`` contiguous ranges whose lengths differ by one at most; some may be empty."""
    bounds = [count * i // parts for i in range(parts + 1)]
    return [range(begin, end) for begin, end in itertools.pairwise(bounds)]
