"""PHP over small CLIP and CLAP towers and toy tasks, with texts and without: models, samples, and the plain formulation."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features
from avcl_core.methods.base import Method
from avcl_core.models.php import Php, PhpOptions
from avcl_core.ownership import Owners, own
from avcl_core.seeding import seed_step
from avcl_core.stream import Experience
from avcl_core.testing import ToyRun, toy_task
from avcl_core.testing.toy_tasks import ToyClasses
from avcl_core.testing.toy_towers import stir
from avcl_core.training.loader import Request
from avcl_core.walk import Ctx
from shared_backbones import create

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "php"


def direct_module():
    """The plain formulation of the whole forward, which the benchmark measures against."""
    for name in ("php_direct_parts", "php_direct"):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, BENCHMARK / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return sys.modules["php_direct"]


# ------------------------------------------------------------------ tasks
class Compared(nn.Module):
    """A head without parameters: twice the similarity by sight and by sound, averaged over seconds."""

    def forward(self, features: Features, batch: Batch) -> Outputs:
        return {"logits": 2 * (features.similarity["visual"] + features.similarity["audio"]).mean(1)}


class Spoken(ToyClasses):
    """Four classes with names, and background, which is never true."""

    texts = ("dog", "baby_cry", "church bell, big", "flute", "background")

    def head(self, spec, experience) -> nn.Module:
        assert spec.similarity == ("visual", "audio")
        return Compared()


def tasks_of(*names: str, **options) -> dict[str, Any]:
    """Toy tasks by name: one that begins with ``spoken`` has texts."""
    return {n: Spoken(n, **options) if n.startswith("spoken") else toy_task(n, **options) for n in names}


# ------------------------------------------------------------------ towers
def tiny_towers():
    """The embedded towers: 4 blocks; audio stages of 1, 1 and 2 blocks on grids of 16, 8 and 4, without shifted windows."""
    return {"visual": create("clip_vit", size="tiny"), "audio": create("clap", size="tiny")}


def shifted_towers():
    """Four blocks; audio stages of 2 and 2 blocks on grids of 16 and 8: the second block of each has shifted windows."""
    from transformers import ClapTextConfig

    from shared_backbones.hts_at import audio_config
    from shared_backbones.logmel import LogMelOptions
    from shared_backbones.towers.clap import Clap
    from shared_backbones.towers.clip_vit import ClipVit
    from shared_backbones.vocabulary import byte_vocabulary

    text = ClapTextConfig(
        vocab_size=259, hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=79, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1,
        bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    audio = audio_config(64, 16, 8, (2, 2), (1, 2), 4, 16)
    front = LogMelOptions(sample_rate=8000, hop=80, mels=16, scale="htk", n_fft=256, high=4000.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = ClipVit("tiny", "toy", (32, 4, 2, 8, 32, 16, 2, 2, 16, 259), byte_vocabulary(257, 258, 0))
        clap = Clap("tiny", audio, text, front, byte_vocabulary(0, 2, 1))
        return {"visual": stir(clip), "audio": stir(clap)}


TINY = {
    "shallow": {"blocks": [0], "latents": 4, "reduction": 4},
    "mid": {"blocks": [1], "dictionary": 16, "rows": 8, "depth": 1},
    "deep": {"blocks": [2, 3], "length": 2, "pool_size": 2},
}
"""PHP's options for the embedded towers (php.md 10)."""
SHIFTED = {
    "shallow": {"blocks": [0, 1], "latents": 3, "reduction": 2},
    "mid": {"blocks": [1, 2], "dictionary": 9, "rows": 8, "depth": 2},
    "deep": {"blocks": [0, 2, 3], "length": 3, "pool_size": 3},
}
"""Every block of :func:`shifted_towers` with something; block 2 is listed as mid and as deep, so it is mid."""


def toy(*names: str, towers=tiny_towers, experiences: int = 1, **options) -> ToyRun:
    """A run of PHP on toy tasks."""
    base = SHIFTED if towers is shifted_towers else TINY
    merged = {**base, **options}
    for phase in ("shallow", "mid", "deep"):
        merged[phase] = {**base[phase], **options.get(phase, {})}
    tasks = tasks_of(*(names or ("spoken", "mask")), experiences=experiences)
    return ToyRun(towers, Php, Method, tasks, model_options=PhpOptions(**merged))


def grown(run: ToyRun, shaken: float = 0.3, double: bool = True, gates: float | None = None) -> Method:
    """The method over a model that knows all experiences; ``shaken`` moves every parameter, ``gates`` sets the gates."""
    method = run.build()
    for experience in run.stream.experiences:
        seed_step(run.seed, "grow", experience.name)
        method.model.grow(experience)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in Owners(method.model).match().items():
            parameter.add_(shaken * torch.randn(parameter.shape, generator=generator))
            if gates is not None and name.endswith("gate"):
                parameter.fill_(gates)
    if double:
        method.model.double()
    return method


def samples(run: ToyRun, experience: Experience | str, count: int = 3, split: str = "train", double=True) -> Batch:
    """The first samples of a split."""
    known = run.stream.experience(experience) if isinstance(experience, str) else experience
    batch = run.loader().load(Request(known, split, known.keys(split)[:count], None))
    return batch._map(lambda v: v.double() if double and v.is_floating_point() else v)


def features(method: Method, batch: Batch, training: bool = False, grad: bool = False, **changes) -> Features:
    """Features of a batch."""
    ctx = replace(method.context(batch, training), **changes)
    with torch.set_grad_enabled(grad):
        return method.model.features(batch, ctx)


def flat(found: Features) -> dict[str, Tensor]:
    """Everything that features hold, by name."""
    stages = {f"{n} {i}": v for n, values in found.stages.items() for i, v in enumerate(values)}
    return {**found.final, **stages, **{f"like {n}": v for n, v in found.similarity.items()}}


def gap(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).detach().abs().max()) for n in one)


TOWERS = {"tiny": tiny_towers, "shifted": shifted_towers}
BOTH = pytest.mark.parametrize("towers", TOWERS.values(), ids=TOWERS)


def pooled(method, ctx):
    """The queries of the pool for sound, from the memo of a forward pass."""
    grid, _ = method.model.sound
    image = ctx.embedded["audio"].transpose(1, 2).unflatten(2, grid)
    halved = functional.max_pool2d(functional.max_pool2d(image, 2), 2)
    return halved.flatten(2).transpose(1, 2).reshape(len(image), -1, method.model.width)


__all__ = ["Ctx", "own", "replace"]
