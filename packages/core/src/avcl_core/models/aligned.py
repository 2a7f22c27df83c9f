"""CLIP and CLAP in lock-step with a text classifier: the trunk of PHP and of the prompt methods it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from avcl_core.batch import Batch
from avcl_core.config.options import Options
from avcl_core.errors import ConfigError
from avcl_core.features import Features, FeatureSpec
from avcl_core.models.base import Model, Requires
from avcl_core.models.distinct import once
from avcl_core.models.kept import Kept
from avcl_core.ownership import own
from avcl_core.precision import cosines, unmixed
from avcl_core.prompts.centres import Centres, Metric
from avcl_core.prompts.context import ClassPrompts, LearnedContext, spoken
from avcl_core.stream import Experience
from avcl_core.task import Task
from avcl_core.walk import Ctx, DualStream
from shared_backbones.text import TextEncoder
from shared_backbones.tower import Tower

if TYPE_CHECKING:
    from avcl_core.methods.base import Data

Modality = Literal["visual", "audio"]


def _different(names: tuple[Modality, ...]) -> tuple[Modality, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"names a modality twice: {list(names)}")
    return names


Modalities = Annotated[tuple[Modality, ...], Field(min_length=1), AfterValidator(_different)]
"""At least one modality, each once."""
CONTRAST_SCALE = 100.0
"""Factor on the cosines of the contrastive term (php.md 4.1)."""
SHARED_TEXT = "shared:text"
"""Owner of what all tasks with a text classifier share and no other task trains."""


class ContextOptions(Options):
    """Learned context of class prompts.

    Attributes:
        tokens: context vectors before each class name.
        per: one context for each ``task``, or one ``shared`` by all.
    """

    tokens: PositiveInt = 4
    per: Literal["task", "shared"] = "task"


class TextOptions(Options):
    """CLIP-Adapters (Gao et al., IJCV 2024) behind the image and the class prompt features.

    Attributes:
        adapter: weight of what the adapters return; the frozen features have the rest.
        reduction: by how much narrower the adapters' hidden layer is.
    """

    adapter: Annotated[float, Field(ge=0, le=1)] = 0.2
    reduction: PositiveInt = 4


class ContrastOptions(Options):
    """Weights of the contrastive terms between the sound and the frames of a clip; both 0: no term."""

    audio_to_visual: NonNegativeFloat = 2.0
    visual_to_audio: NonNegativeFloat = 1.5

    @property
    def acts(self) -> bool:
        """Whether there is any term."""
        return self.audio_to_visual + self.visual_to_audio > 0


class RouterOptions(Options):
    """Centres that tell to which task a sample of a hidden experience belongs (:class:`Centres`).

    Attributes:
        count: K-Means centres per task.
        metric: ``l1`` or ``cosine``.
        reads: towers whose frozen features are compared, side by side.
    """

    count: PositiveInt = 5
    metric: Metric = "l1"
    reads: Modalities = ("visual", "audio")


class AlignedOptions(Options):
    """Configuration that all models on CLIP and CLAP have.

    Attributes:
        cache_mib: memory for frozen features that queries and routers read, in MiB.
    """

    context: ContextOptions = ContextOptions()
    text: TextOptions = TextOptions()
    contrast: ContrastOptions = ContrastOptions()
    cache_mib: NonNegativeInt = 256


@dataclass
class _Encoded:
    """Text features and what they were computed from."""

    context: Tensor
    version: int
    features: Tensor

    def of(self, context: Tensor) -> bool:
        """Whether they are of these values: the same tensor, not written to since, on the same device."""
        same = self.context is context and self.version == context._version
        return same and self.features.device == context.device


class Aligned(Model):
    """Two frozen towers with a text side, walked block by block, the audio block whole (php.md 3.2); a head per task.

    Tasks with class texts are classified by similarity (3.7): learned context before the class names, CLIP-Adapters, and the
    contrastive term. Subclasses place what they add at sites of ``walks[0]``; without any, this is linear probing's sibling:
    frozen towers with heads and text classifiers.
    """

    Config = AlignedOptions
    requires = Requires(
        towers=("visual", "audio"), kinds=("attn", "mlp"), modalities=("visual", "audio"), task_id=("given",)
    )
    options: AlignedOptions

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: AlignedOptions) -> None:
        for name in ("visual", "audio"):
            if towers[name].text is None:
                raise ConfigError(
                    f"towers.{name}: {towers[name].info.name} has no text side; use clip_vit for visual, clap for audio"
                )
        super().__init__(towers, tasks, options)
        self.kept = Kept(options.cache_mib * 2**20)
        self.contexts = nn.ModuleDict()
        self.prompts: dict[str, ClassPrompts] = {}
        self.router: Centres | None = None  # a model that sends hidden samples to centres makes them
        self._reads: tuple[Modality, ...] = ()
        self._seen: dict[str, _Encoded] = {}
        self._heard: dict[str, Tensor] = {}
        self.text = nn.ModuleDict()
        if any(task.texts for task in tasks.values()):
            joint, heard = (_joint(towers[name]) for name in ("visual", "audio"))
            self.text["visual"] = clip_adapter(joint, options.text.reduction)
            self.text["names"] = clip_adapter(joint, options.text.reduction)
            if options.contrast.acts:
                self.text["contrast"] = nn.Linear(heard, joint)
            if options.context.per == "shared":
                self.text["context"] = LearnedContext(options.context.tokens, self._text("visual").width)
            own(self.text, SHARED_TEXT)

    @classmethod
    def remarks(cls, options: Options, tasks: Mapping[str, Task], sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Tell of contrastive terms that are zero, since a step has no other sample to compare with."""
        alone = [name for name, task in tasks.items() if task.texts and sizes[name] == 1]
        if not alone or not (isinstance(options, AlignedOptions) and options.contrast.acts):
            return ()
        return (
            f"{', '.join(alone)}: the contrastive term (model.contrast) is zero in every step, which has one sample and none to tell "
            "it from; set training.batch_size to 2 or more, or both weights to 0",
        )

    # ------------------------------------------------------------------ structure
    def make_walks(self) -> tuple[DualStream, ...]:
        """Walk both towers in lock-step; block ℓ of one meets block ℓ of the other, which runs whole."""
        towers = dict(self._towers())
        visual, audio = towers["visual"], towers["audio"]
        blocks = [sum(tower.info.depths) for tower in (visual, audio)]
        if blocks[0] != blocks[1]:
            raise ConfigError(
                f"towers {visual.info.name} and {audio.info.name} have {blocks[0]} and {blocks[1]} blocks; they are walked "
                "block by block and need the same number"
            )
        pairs = [(block, block) for block in range(blocks[0])]
        return (DualStream.lockstep({"visual": visual, "audio": audio}, pairs, "whole"),)

    def spec(self) -> FeatureSpec:
        """Return the shapes that heads can expect; both modalities are compared with texts."""
        return replace(super().spec(), similarity=("visual", "audio"))

    def coupled(self, task: str) -> bool:
        """Whether a contrastive term compares the samples of the task's batches: where it has class texts."""
        return bool(self.tasks[task].texts) and self.options.contrast.acts

    def grow(self, experience: Experience) -> None:
        """Create what the experience needs; a task with texts gets a context of its own."""
        super().grow(experience)
        task = self.tasks[experience.task]
        if self.router is not None:
            self.router.grow(self.slot(experience))
        if not task.texts:
            return
        self.prompts[task.name] = ClassPrompts(self._text("visual"), task.texts, self.options.context.tokens)
        if self.options.context.per == "task" and task.name not in self.contexts:
            context = LearnedContext(self.options.context.tokens, self._text("visual").width)
            self.contexts[task.name] = own(context, f"task:{task.name}")

    def joint_width(self, name: str) -> int:
        """Return the width of the space that a tower shares with text."""
        return _joint(dict(self._towers())[name])

    def make_router(self, options: RouterOptions) -> None:
        """Keep centres of every task's frozen features, by which :meth:`guess` chooses."""
        width = sum(self.joint_width(name) for name in options.reads)
        self.router, self._reads = Centres(width, options.count, options.metric), options.reads

    def active(self, experience: Experience) -> tuple[str, ...]:
        """Return the model's owners; what serves text classifiers learns only from tasks that have one."""
        if not self.tasks[experience.task].texts:
            return super().active(experience)
        return (*super().active(experience), f"task:{experience.task}", SHARED_TEXT)

    # ------------------------------------------------------------------ routing
    def calibrate(self, experience: Experience, data: Data, hidden: bool) -> None:
        """Compute the centres of the experience, where the model keeps any and prediction will ask for them.

        Raises:
            ConfigError: a tower that they are centres of learns.
        """
        if self.router is not None and hidden:
            self._refuse_moving()
            self.router.fit(self.slot(experience), (self.query(batch, self._reads) for batch in data.batches()))

    def _refuse_moving(self) -> None:
        for name in self._reads:
            if dict(self._towers())[name].trainable:
                raise ConfigError(
                    f"towers.{name} learns, and the router compares samples with centres of its frozen features: they would be of "
                    "another space after training; freeze the tower, or route without centres"
                )

    def route(self, batch: Batch) -> tuple[str, ...] | None:
        """Return one slot per sample: that of the experience where it is given, else what :meth:`guess` makes of its content.

        Heads, class texts and their contexts are those of the task that is asked in any case.
        """
        return self.guess(batch) if batch.experience is None else super().route(batch)

    def guess(self, batch: Batch) -> tuple[str, ...] | None:
        """Return one slot per sample of a hidden experience; ``None`` for a model without copies per slot."""
        return None if self.router is None else self.router.nearest(self.query(batch, self._reads))

    def query(self, batch: Batch, names: Sequence[str]) -> Tensor:
        """Return what a sample looks and sounds like to the frozen towers ``[b, D]``: the means over its seconds of the features
        that they share with text, each normalised, side by side."""
        return torch.cat([F.normalize(self.frozen(batch, name).mean(1), dim=-1) for name in names], -1)

    # ------------------------------------------------------------------ the forward call
    def features(self, batch: Batch, ctx: Ctx) -> Features:
        """Return the features of a batch, with their similarity to the task's texts; the contrastive term goes to ``ctx.aux``.

        Samples with the same media share a pass: prompts, adapters and routes depend on what is seen and heard alone. Not where a
        contrastive term compares the batch's samples, which would be others then.
        """
        if ctx.trace is not None and ctx.slots is not None and batch.experience is None:
            ctx.trace.tell_route(ctx.slots, self.slots, next(iter(batch.inputs.values())).device)
        return self._features(batch, ctx) if self.tasks[batch.task].texts else once(batch, ctx, self._features)

    def _features(self, batch: Batch, ctx: Ctx) -> Features:
        found = super().features(batch, ctx)
        if not self.tasks[batch.task].texts:
            return found
        frames = found.final["visual"].shape[1]
        joint = {name: self.project(name, found.final[name].flatten(0, 1)) for name in ("visual", "audio")}
        if ctx.training and self.options.contrast.acts:
            means = {name: value.unflatten(0, (-1, frames)) for name, value in joint.items()}
            self._contrast(means["visual"].mean(1), self.text["contrast"](means["audio"]).mean(1), ctx)
        mix = self.options.text.adapter
        seen = mix * self.text["visual"](joint["visual"]) + (1 - mix) * joint["visual"]
        scale = {name: self._text(name).scale for name in ("visual", "audio")}
        logits = {
            "visual": scale["visual"] * cosines(seen, self.seen_names(batch.task)),
            "audio": scale["audio"] * cosines(joint["audio"], self.heard_names(batch.task)),
        }
        return replace(found, similarity={n: value.unflatten(0, (-1, frames)) for n, value in logits.items()})

    def project(self, name: str, final: Tensor) -> Tensor:
        """Return final tokens ``[n, N, C]`` of a tower in the space shared with text ``[n, D]``, not normalised."""
        return dict(self._towers())[name].project(final)

    def frozen(self, batch: Batch, name: str) -> Tensor:
        """Return a plain tower's normalised joint features ``[b, T, D]``, without gradient: what queries and routers read."""
        value = self.given(batch, name, name)
        return self.kept.joint(self.plain_walk(name), value.flatten(0, 1)).unflatten(0, value.shape[:2])

    def seen_names(self, task: str) -> Tensor:
        """Return CLIP's normalised class prompt features ``[K, D]``; while nothing learns, they are encoded once per context.

        A tower that learns (``trainable``) encodes them every time, with gradient to its own weights.
        """
        shared = self.options.context.per == "shared"
        context = cast(LearnedContext, self.text["context"] if shared else self.contexts[task]).vectors
        learns = self._learns("visual")
        if learns:
            self._seen.clear()
        if learns or (torch.is_grad_enabled() and context.requires_grad):
            features = self.prompts[task].encode(context)
        else:
            known = self._seen.get(task)
            if known is None or not known.of(context):
                # Kept beyond the step that needs it first, so of the encoder's own precision.
                with torch.no_grad(), unmixed(context):
                    known = _Encoded(context, context._version, self.prompts[task].encode(context))
                self._seen[task] = known
            features = known.features
        mix = self.options.text.adapter
        return F.normalize(mix * self.text["names"](features) + (1 - mix) * features, dim=-1)

    def heard_names(self, task: str) -> Tensor:
        """Return CLAP's normalised features ``[K, D]`` of "The sounds of …", encoded once by a frozen tower.

        They have no gradient: what a tower that learns makes of them is encoded again every time, but teaches it nothing.
        """
        weight = next(self.towers["audio"].parameters())
        if weight.is_meta:  # sizes are counted: what is encoded once is no part of a sample's cost
            return weight.new_empty(len(self.tasks[task].texts), self.joint_width("audio"))
        learns = self._learns("audio")
        if learns:
            self._heard.clear()
        known = self._heard.get(task)
        if known is None or known.device != weight.device:
            texts = [f"The sounds of {spoken(name)}" for name in self.tasks[task].texts]
            with unmixed(weight):
                known = F.normalize(self._text("audio").encode(texts), dim=-1)
            if not learns:
                self._heard[task] = known
        return known

    def _contrast(self, seen: Tensor, heard: Tensor, ctx: Ctx) -> None:
        """Add the two contrastive terms between clips' mean features ``[b, D]``, over the samples of all ranks (php.md 4.1)."""
        rows = ctx.gather({"seen": seen, "heard": heard})
        logits = CONTRAST_SCALE * cosines(rows["heard"], rows["seen"])
        same = torch.arange(len(logits), device=logits.device)
        weights = self.options.contrast
        ctx.aux["audio to visual"] = weights.audio_to_visual * F.cross_entropy(logits, same)
        ctx.aux["visual to audio"] = weights.visual_to_audio * F.cross_entropy(logits.T, same)

    def _learns(self, name: str) -> bool:
        return dict(self._towers())[name].trainable

    def _text(self, name: str) -> TextEncoder:
        text = dict(self._towers())[name].text
        assert text is not None  # checked when the model is built
        return text


def clip_adapter(width: int, reduction: int) -> nn.Module:
    """Return a CLIP-Adapter: two linear maps without biases, each behind a ReLU (php.md 3.7)."""
    hidden = width // reduction
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.ReLU()
    )


def _joint(tower: Tower) -> int:
    width = tower.info.joint_width
    assert width is not None
    return width
