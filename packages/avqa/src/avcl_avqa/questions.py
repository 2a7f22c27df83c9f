"""Questions about a scene, in the wording of MUSIC-AVQA's templates: only those whose answer the scene settles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import numpy as np

from avcl_avqa.metrics import TYPES
from avcl_core.world.scene import Scene, Source, mask_of

AUDIBLE_DB = 3.0
"""Difference of level from which one sound is louder than another."""
LEAD = 2
"""By how much the more frequent of yes and no may lead among the questions of one template."""
AUDIBLE_SECONDS = 2
"""Difference of onset from which one sound comes before another, and of duration from which it lasts longer."""
COUNTS = ("zero", "one", "two", "three", "four")
SIDES = ("left", "middle", "right")
ORDINALS = ("first", "second", "third", "fourth")
FIXED_ANSWERS = ("yes", "no", *COUNTS, *SIDES, "simultaneously")
"""Answers that are no instruments."""
FIXED_VALUES = (*SIDES, *ORDINALS, "last", "before", "after", "loudest", "lowest", "leftest", "rightest")
"""Template values that are no instruments."""

HEARD = "How many musical instruments were heard throughout the video?"
SOUND = "Is there a <Object> sound?"
SOUNDS = "Are there <Object> and <Object> sound?"
LOUDER = "Is the <Object> louder than the <Object>?"
LONGER = "Is the <Object> playing longer than the <Object>?"
KINDS_SEEN = "How many types of musical instruments appeared in the entire video?"
SEEN = "Is there a <Object> in the entire video?"
BOTH_SEEN = "Are there <Object> and <Object> instruments in the video?"
NUMBER_SEEN = "How many <Object> are in the entire video?"
OUTERMOST = "What kind of instrument is the <LRer> instrument?"
BESIDE = "What is the instrument on the <LR> of <Object>?"
ONLY = "What kind of musical instrument is it?"
FROM_VIDEO = "Is this sound from the instrument in the video?"
ALWAYS = "Is the <Object> in the video always playing?"
SOUNDING = "How many instruments are sounding in the video?"
KINDS_SOUNDING = "How many types of musical instruments sound in the video?"
SILENT = "How many instruments in the video did not sound from beginning to end?"
NUMBER_SOUNDING = "How many sounding <Object> in the video？"
WHERE_LOUDEST = "Where is the <LL> instrument?"
FIRST_FROM = "Is the <FL> sound coming from the <LR> instrument?"
TOGETHER = "Which is the musical instrument that sounds at the same time as the <Object>?"
BESIDE_FIRST = "What is the <LR> instrument of the <FL> sounding instrument?"
SIDE_LOUDER = "Is the instrument on the <LR> louder than the instrument on the <LR>?"
PLACED_LOUDER = "Is the <Object> on the <LR> louder than the <Object> on the <LR>?"
WHERE_FIRST = "Where is the <FL> sounding instrument?"
COMES_IN = "What is the <TH> instrument that comes in?"
BEFORE = "Which instrument makes sounds <BA> the <Object>?"
WHICH_FIRST = "Which <Object> makes the sound <FL>?"

TEMPLATES = (
    *(
        HEARD,
        SOUND,
        SOUNDS,
        LOUDER,
        LONGER,
        KINDS_SEEN,
        SEEN,
        BOTH_SEEN,
        NUMBER_SEEN,
        OUTERMOST,
        BESIDE,
        ONLY,
        FROM_VIDEO,
    ),
    *(ALWAYS, SOUNDING, KINDS_SOUNDING, SILENT, NUMBER_SOUNDING, WHERE_LOUDEST, FIRST_FROM, TOGETHER, BESIDE_FIRST),
    *(SIDE_LOUDER, PLACED_LOUDER, WHERE_FIRST, COMES_IN, BEFORE, WHICH_FIRST),
)
"""28 of MUSIC-AVQA's 33 templates; the others ask about rhythm, voices and rooms, which scenes do not have."""


@dataclass(frozen=True)
class Question:
    """A template with its values and the answer that the scene gives."""

    type: tuple[str, str]
    template: str
    values: tuple[str, ...]
    answer: str


def side(source: Source) -> str:
    """Return the third of the frame in which a source stands."""
    return SIDES[min(int(source.start[0] * 3), 2)]


def level(source: Source) -> float:
    """Return the level of a source in dB against the nominal loudness."""
    return 20 * float(np.log10(source.gain))


def balanced(
    scenes: Sequence[Scene], names: Mapping[str, str], count: int, rng: np.random.Generator
) -> list[list[Question]]:
    """Return ``count`` questions of different types for every scene (fewer where a scene settles fewer).

    The rarest types so far come first; of a type's questions the one with the rarest template and then the rarest answer to it is
    taken, and none whose yes or no leads by :data:`LEAD` already, so that neither the template nor its most frequent answer tells much.

    Args:
        names: class → the one word that questions and answers call it.
    """
    kinds: Counter[tuple[str, str]] = Counter()
    templates: Counter[str] = Counter()
    answers: Counter[tuple[str, str]] = Counter()
    opposite = {"yes": "no", "no": "yes"}

    def leads(question: Question) -> bool:
        other = opposite.get(question.answer)
        if other is None:
            return False
        return answers[question.template, question.answer] - answers[question.template, other] >= LEAD

    chosen = []
    for scene in scenes:
        pool = list(questions(scene, names))
        pool = [pool[int(i)] for i in rng.permutation(len(pool))]
        taken: list[Question] = []
        for kind in sorted(TYPES, key=lambda kind: kinds[kind]):
            left = [q for q in pool if q.type == kind and not leads(q)]
            if left and len(taken) < count:
                best = min(left, key=lambda q: (templates[q.template], answers[q.template, q.answer]))
                kinds[kind] += 1
                templates[best.template] += 1
                answers[best.template, best.answer] += 1
                taken.append(best)
        chosen.append(taken)
    return chosen


def questions(scene: Scene, names: Mapping[str, str]) -> Iterator[Question]:
    """Yield every question that the scene settles."""
    facts = _Facts(scene, names)
    for kind, ask in zip(
        TYPES,
        (
            facts.audio_counting,
            facts.audio_comparative,
            facts.visual_counting,
            facts.visual_location,
            facts.existential,
            facts.counting,
            facts.location,
            facts.comparative,
            facts.temporal,
        ),
        strict=True,
    ):
        for template, values, answer in ask():
            yield Question(kind, template, tuple(values), answer)


Asked = Iterator[tuple[str, tuple[str, ...], str]]
"""(template, values, answer)."""


def _yes(value: bool) -> str:
    return "yes" if value else "no"


class _Facts:
    """What is seen and heard in a scene, by source."""

    def __init__(self, scene: Scene, names: Mapping[str, str]) -> None:
        self.scene, self.names = scene, names
        self.seen = sorted((s for s in scene.sources if s.visible), key=lambda s: s.start[0])
        self.heard = sorted((s for s in scene.sources if s.audible), key=lambda s: s.audible[0][0])
        self.both = [s for s in self.seen if s.audible]
        count = Counter(s.cls for s in scene.sources)
        self.single = [s for s in scene.sources if count[s.cls] == 1]
        self.outside = any(not s.visible for s in self.heard)

    def name(self, source: Source) -> str:
        return self.names[source.cls]

    def seconds(self, source: Source) -> np.ndarray:
        return mask_of(source.audible, self.scene.seconds)

    def apart(self, sources: Sequence[Source]) -> bool:
        """Whether the onsets of sources in order are far enough apart."""
        onsets = [s.audible[0][0] for s in sources]
        return all(b - a >= AUDIBLE_SECONDS for a, b in pairwise(onsets))

    def ends(self) -> dict[str, Source]:
        """``first`` and ``last`` → the source that clearly begins first or last, where there is one."""
        found = {}
        if len(self.heard) > 1:
            if self.apart(self.heard[:2]):
                found["first"] = self.heard[0]
            if self.apart(self.heard[-2:]):
                found["last"] = self.heard[-1]
        return found

    def louder(self, sources: Sequence[Source]) -> Iterator[tuple[Source, Source, bool]]:
        """Ordered pairs whose levels clearly differ, and whether the first is the louder one."""
        for one, two in permutations(sources, 2):
            if abs(level(one) - level(two)) >= AUDIBLE_DB:
                yield one, two, level(one) > level(two)

    def neighbour(self, source: Source, where: str) -> Source | None:
        """The only source on one side of another, if it is the only one there."""
        place = source.start[0]
        there = [s for s in self.seen if (s.start[0] < place if where == "left" else s.start[0] > place)]
        return there[0] if len(there) == 1 else None

    def audio_counting(self) -> Asked:
        yield HEARD, (), COUNTS[len(self.heard)]
        heard = {s.cls for s in self.heard}
        for cls, name in self.names.items():
            yield SOUND, (name,), _yes(cls in heard)
        for one, two in permutations(self.names, 2):
            if one in heard or two in heard:
                yield SOUNDS, (self.names[one], self.names[two]), _yes(one in heard and two in heard)

    def audio_comparative(self) -> Asked:
        sources = [s for s in self.heard if s in self.single]
        for one, two, answer in self.louder(sources):
            yield LOUDER, (self.name(one), self.name(two)), _yes(answer)
        for one, two in permutations(sources, 2):
            difference = int(self.seconds(one).sum()) - int(self.seconds(two).sum())
            if abs(difference) >= AUDIBLE_SECONDS:
                yield LONGER, (self.name(one), self.name(two)), _yes(difference > 0)

    def visual_counting(self) -> Asked:
        count = Counter(s.cls for s in self.seen)
        yield KINDS_SEEN, (), COUNTS[len(count)]
        for cls, name in self.names.items():
            yield SEEN, (name,), _yes(cls in count)
            yield NUMBER_SEEN, (name,), COUNTS[count[cls]]
        for one, two in permutations(self.names, 2):
            if one in count or two in count:
                yield BOTH_SEEN, (self.names[one], self.names[two]), _yes(one in count and two in count)

    def visual_location(self) -> Asked:
        if len(self.seen) == 1:
            yield ONLY, (), self.name(self.seen[0])
            return
        for value, source in (("leftest", self.seen[0]), ("rightest", self.seen[-1])):
            yield OUTERMOST, (value,), self.name(source)
        for source in self.seen:
            for where in ("left", "right"):
                other = self.neighbour(source, where)
                if source in self.single and other is not None:
                    yield BESIDE, (where, self.name(source)), self.name(other)

    def existential(self) -> Asked:
        if self.heard and (not self.outside or not self.both):
            yield FROM_VIDEO, (), _yes(not self.outside)
        for source in self.seen:
            if source in self.single:
                yield ALWAYS, (self.name(source),), _yes(bool(self.seconds(source).all()))

    def counting(self) -> Asked:
        count = Counter(s.cls for s in self.both)
        yield SOUNDING, (), COUNTS[len(self.both)]
        yield KINDS_SOUNDING, (), COUNTS[len(count)]
        if all(self.seconds(s).all() or not s.audible for s in self.seen):
            yield SILENT, (), COUNTS[len(self.seen) - len(self.both)]
        for cls in {s.cls: None for s in self.seen}:
            yield NUMBER_SOUNDING, (self.names[cls],), COUNTS[count[cls]]

    def location(self) -> Asked:
        if len(self.both) > 1 and not self.outside:
            order = sorted(self.both, key=level)
            if level(order[-1]) - level(order[-2]) >= AUDIBLE_DB:
                yield WHERE_LOUDEST, ("loudest",), side(order[-1])
            if level(order[1]) - level(order[0]) >= AUDIBLE_DB:
                yield WHERE_LOUDEST, ("lowest",), side(order[0])
        for when, source in self.ends().items():
            for place in self.seen:
                yield FIRST_FROM, (when, side(place)), _yes(source is place)
            for where in ("left", "right") if source.visible else ():
                other = self.neighbour(source, where)
                if other is not None:
                    yield BESIDE_FIRST, (where, when), self.name(other)
        if len(self.heard) == 2 and all(s in self.single for s in self.heard):
            for one, two in permutations(self.heard, 2):
                if (self.seconds(one) & self.seconds(two)).any():
                    yield TOGETHER, (self.name(one),), self.name(two)

    def comparative(self) -> Asked:
        for one, two, answer in self.louder(self.both):
            yield SIDE_LOUDER, (side(one), side(two)), _yes(answer)
            yield PLACED_LOUDER, (self.name(one), side(one), self.name(two), side(two)), _yes(answer)

    def temporal(self) -> Asked:
        for when, source in self.ends().items():
            if source.visible:
                yield WHERE_FIRST, (when,), side(source)
        if len(self.heard) > 1 and self.apart(self.heard):
            for ordinal, source in zip(ORDINALS, self.heard, strict=False):
                yield COMES_IN, (ordinal,), self.name(source)
            if len(self.heard) == 2 and all(s in self.single for s in self.heard):
                one, two = self.heard
                yield BEFORE, ("before", self.name(two)), self.name(one)
                yield BEFORE, ("after", self.name(one)), self.name(two)
        for cls, count in Counter(s.cls for s in self.both).items():
            same = [s for s in self.heard if s.cls == cls and s.visible]
            if count == 2 and len([s for s in self.heard if s.cls == cls]) == 2:
                onsets = [s.audible[0][0] for s in same]
                if onsets[0] == onsets[1]:
                    yield WHICH_FIRST, (self.names[cls], "first"), "simultaneously"
                elif self.apart(same):
                    yield WHICH_FIRST, (self.names[cls], "first"), side(same[0])
