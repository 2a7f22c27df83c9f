"""Anchor experts: a frozen audio-visual language model with one expert per experience, found by what a sample is like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from avcl_core.batch import Batch, Outputs
from avcl_core.errors import ConfigError, RunError
from avcl_core.features import Features
from avcl_core.models.anchored import Anchored, AnchoredOptions
from avcl_core.models.base import Requires
from avcl_core.models.kept import Kept
from avcl_core.moe.anchors import Pooled
from avcl_core.moe.feedforward import Experts, blocks_of
from avcl_core.precision import unmixed
from avcl_core.task import Task
from avcl_core.texts import IGNORED, text_of, texts_array
from avcl_core.walk import Ctx, DualStream
from shared_backbones.language import Cache, LanguageTower, Media, generate, padded
from shared_backbones.tower import Tower

Sense = Literal["visual", "audio"]


@dataclass(frozen=True)
class Perceived:
    """What a media tower and its connector make of samples: words for their prompts, and the mean of the tower's tokens ``[b, D]``."""

    words: Media
    mean: Tensor


class AnchorExpertsOptions(AnchoredOptions):
    """Configuration of :class:`AnchorExperts`.

    Attributes:
        longest: words of a generated answer, at most.
        cache_mib: memory for what frozen towers and connectors make of media, in MiB; 0 computes it at every step.
    """

    longest: PositiveInt = 512
    cache_mib: int = Field(default=1024, ge=0)


class AnchorExperts(Anchored):
    """AVQACL-MoE (avqacl_moe.md 3): nothing but experts learns, each from its own experience, so order does not matter.

    The media towers are walked alone and their tokens enter the language model through its connectors; both are frozen, so all
    of it is kept by content. Experts take the place of MLPs on the language model's walk. What a hidden sample is like is
    compared with the anchors of all experiences so far, once, before its answer is generated.
    """

    Config = AnchorExpertsOptions
    options: AnchorExpertsOptions  # pyright: ignore[reportIncompatibleVariableOverride]
    requires = Requires(towers=("visual", "audio", "language"), task_id=("given", "hidden"))

    def __init__(self, towers: Mapping[str, Tower], tasks: Mapping[str, Task], options: AnchorExpertsOptions) -> None:
        super().__init__(towers, tasks, options)
        self.kept = Kept(options.cache_mib * 2**20)
        language, expert = self.language, options.expert
        for block in blocks_of(expert.layers, language.info.depths[0]):
            sub = next(sub for sub in language.subs if (sub.block, sub.kind) == (block, "mlp"))
            base = cast(torch.nn.Module, language.mlp(sub))
            self.place("language", f"{block}.mlp", "swap", Experts(base, expert.rank, expert.scale, expert.disk))
        widths = {"visual": self._width("visual"), "audio": self._width("audio"), "text": language.info.width}
        self.anchors = options.anchors.make(widths)

    @property
    def language(self) -> LanguageTower:
        """The language model."""
        tower = self.towers["language"]
        if not isinstance(tower, LanguageTower):
            raise ConfigError(f"towers.language: {tower} generates no text; choose av_llama")
        return tower

    def _width(self, name: str) -> int:
        return dict(self._towers())[name].info.width

    def expert(self, slot: str) -> dict[str, Tensor]:
        """Return the tensors of an expert under the names that the language model's checkpoint gives them (avqacl_moe.md 4.4).

        Low-rank experts have ``….lora_A.weight`` ``[r, inputs]`` and ``….lora_B.weight`` ``[outputs, r]`` instead.
        """
        found: dict[str, Tensor] = {}
        for (_, step, _), (bank,) in self.sites.items():
            assert isinstance(bank, Experts)
            block = step.partition(".")[0]
            named = bank.tensors(slot)
            found |= {f"model.layers.{block}.mlp.{name}.weight": value for name, value in named.items()}
        return found

    # ------------------------------------------------------------------ routing
    def pooled(self, batch: Batch) -> Pooled:
        """Return what samples are like: means over the valid tokens of what frozen towers make of them ``[b, D]``."""
        found, present = {}, {}
        for name in self.anchors.widths:
            if name == "text":
                found[name] = torch.stack([self._question(text) for text in self._texts(batch)])
            else:
                seen = self._perceived(batch, cast(Sense, name))
                found[name], present[name] = seen.mean, seen.words.valid.any(1)
        return Pooled(found, present)

    def _texts(self, batch: Batch) -> list[str]:
        if batch.inputs["question"].is_meta:
            raise RunError("how much a language model computes depends on the words of each sample")
        return [text_of(row) for row in batch.inputs["question"]]

    def _question(self, text: str) -> Tensor:
        """The mean of the words of a question, without template and answer ``[D]``."""
        ids = self.language.dialogue.question(text)
        return self.language.words(torch.tensor(ids, device=self._device())).mean(0)

    def _device(self) -> torch.device:
        return next(self.language.parameters()).device

    # ------------------------------------------------------------------ media
    def media(self, batch: Batch) -> dict[str, Media]:
        """Return what the prompts of a batch can show and let hear, as words of the language model."""
        return {"video": self._perceived(batch, "visual").words, "audio": self._perceived(batch, "audio").words}

    def _perceived(self, batch: Batch, name: Sense) -> Perceived:
        """What a media tower and its connector make of the samples, kept by content unless some of it is denied."""
        value, denied = batch.inputs[name], batch.present.get(name)
        if denied is None or bool(denied.all()):
            tower = dict(self._towers())[name]
            words, mean = self.kept.parts((name, "words"), tower, value, lambda rows: self._perceive(name, rows, None))
            return Perceived(Media(words, torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)), mean)
        there = denied if denied.ndim == 2 else denied.unsqueeze(1).expand(value.shape[:2])
        words, mean, valid = self._perceive(name, value, there)
        return Perceived(Media(words, valid), mean)

    def _perceive(self, name: Sense, value: Tensor, there: Tensor | None) -> tuple[Tensor, ...]:
        """Words ``[b, n, C]`` and the mean token ``[b, D]`` of inputs ``[b, T, …]``; with ``there`` ``[b, T]`` also which words are."""
        walk = next(walk for walk in self.walks if name in walk.towers)
        tower, pieces = walk.towers[name], value.shape[:2]
        with torch.no_grad(), unmixed(value):
            tokens, aux = tower.embed(value.flatten(0, 1))
            final = walk.walk({name: tokens}, {name: aux}, {}, Ctx()).final[name].squeeze(1)
            tokens = final[:, tower.info.class_tokens :].unflatten(0, pieces)  # [b, T, N, D]
            each = tokens.mean(2)
            if there is None:
                return self.language.connect(name, tokens).tokens, each.mean(1)
            weights = there / there.sum(1, keepdim=True).clamp_min(1)
            valid = there if name == "visual" else there.unsqueeze(2).expand(tokens.shape[:3])
            words = self.language.connect(name, tokens, valid)
            return words.tokens, (each * weights.unsqueeze(2)).sum(1), words.valid

    # ------------------------------------------------------------------ the forward call
    def features(self, batch: Batch, ctx: Ctx) -> Features:
        """Return the final tokens of prompts and answers ``[b, 1, N, C]``, filled up at the end."""
        language = self.language
        answers = batch.targets["language"]
        prompts = [language.dialogue.prompt(text) for text in self._texts(batch)]
        ids = [
            [*prompt, *answer[answer != IGNORED].tolist()[:-1]] for prompt, answer in zip(prompts, answers, strict=True)
        ]
        rows, valid = language.splice(padded(ids, self._device()), self.media(batch), "right")
        return Features({"language": self._walked(ctx, rows, valid, None)[:, None]}, {}, {"valid": valid})

    def read(self, features: Features, batch: Batch, ctx: Ctx) -> Outputs:
        """Return the scores of every supervised word of the answer ``[b, n, vocabulary]``; those behind its end mean nothing."""
        answers = batch.targets["language"]
        lengths = (answers != IGNORED).sum(1)
        # The word before an answer's first one is the prompt's last.
        first = features.plain["valid"].sum(1) - lengths
        at = first.unsqueeze(1) + torch.arange(answers.shape[1], device=first.device)
        final = features.final["language"].squeeze(1)
        at = at.clamp_max(final.shape[1] - 1)
        return {"answer": self.language.logits(final.gather(1, at.unsqueeze(-1).expand(-1, -1, final.shape[2])))}

    def answer(self, batch: Batch, ctx: Ctx) -> Outputs:
        """Return generated answers, the most likely word at each step, as ``text`` (:func:`avcl_core.texts.texts_array`)."""
        walk = partial(self._walked, ctx)
        said = generate(self.language, self._texts(batch), self.media(batch), self.options.longest, walk)
        return {"text": texts_array(said)}

    def _walked(self, ctx: Ctx, rows: Tensor, valid: Tensor, cache: Cache | None) -> Tensor:
        tokens, aux = self.language.enter(rows, valid, cache)
        walk = next(walk for walk in self.walks if "language" in walk.towers)
        found = walk.walk({"language": tokens}, {"language": aux}, self.sites, replace(ctx, frames=1))
        return found.final["language"].squeeze(1)

    def make_walks(self) -> tuple[DualStream, ...]:
        """Return every tower's walk alone; CLIP's patch tokens are read without its last norm (avqacl_moe.md 3.1)."""
        return tuple(
            DualStream.solo(name, tower, ("visual",) if name == "visual" else ()) for name, tower in self._towers()
        )
