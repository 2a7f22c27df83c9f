"""The contract of a tower: its sublayers are what they say, the walk is the encoder, and a frozen tower stays frozen."""

from __future__ import annotations

import torch
from torch import Tensor

from avcl_core.testing.rules import fingerprint, require
from avcl_core.walk import Ctx, DualStream
from shared_backbones.tower import Tower

BATCH_TOLERANCE = 1e-4
"""Largest difference that another batch size may make, relative to the largest token: kernels differ, results do not."""


def sample_input(tower: Tower, count: int = 3) -> Tensor:
    """Return random images ``[count, 3, H, W]``, waveforms ``[count, samples]`` or ids ``[count, L]`` for the tower's front end."""
    generator = torch.Generator().manual_seed(0)
    info = tower.info
    if info.modality == "visual":
        side = info.image_size or 32
        return torch.randn(count, 3, side, side, generator=generator)
    if info.modality == "language":
        return torch.randint(200, (count, info.grid[0] * info.grid[1]), generator=generator)
    samples = min(info.max_samples or 8000, info.sample_rate or 8000)
    return 0.3 * torch.randn(count, samples, generator=generator)


def walk_plain(tower: Tower, features: Tensor) -> Tensor:
    """Return the final tokens of the walk without any site."""
    tokens, aux = tower.embed(features)
    return DualStream.solo("tower", tower).walk({"tower": tokens}, {"tower": aux}, {}, Ctx()).final["tower"].squeeze(1)


def check_tower(tower: Tower, inputs: Tensor | None = None) -> None:
    """Check a frozen tower.

    Args:
        tower: the tower, not trainable.
        inputs: what ``encode`` takes; by default random images or waveforms by ``tower.info``.

    Raises:
        AssertionError: the first rule that is broken.
    """
    who = f"tower {tower.info.name}"
    inputs = sample_input(tower) if inputs is None else inputs
    _check_frozen(tower, who)
    before = fingerprint(tower)
    with torch.no_grad():
        _check_sublayers(tower, who, inputs)
        encoded = tower.encode(inputs)
        require(
            torch.equal(encoded, walk_plain(tower, tower.frontend(inputs))),
            who,
            "a walk without sites must equal encode bit for bit",
        )
        require(
            torch.equal(encoded, tower.encode(inputs)), who, "encoding the same input twice must give the same tokens"
        )
        alone = torch.cat([tower.encode(inputs[i : i + 1]) for i in range(len(inputs))])
        scale = float(encoded.abs().max()) or 1.0
        require(
            float((alone - encoded).abs().max()) <= BATCH_TOLERANCE * scale,
            who,
            "a sample's tokens must not depend on its batch",
        )
        _check_swap(tower, who, inputs)
    moved = [name for name, value in fingerprint(tower).items() if not torch.equal(value, before[name])]
    require(
        not moved,
        who,
        f"a frozen tower changed its tensors {moved[:3]} while encoding; frozen statistics must not move",
    )


def _check_frozen(tower: Tower, who: str) -> None:
    learning = [name for name, p in tower.named_parameters() if p.requires_grad]
    require(not learning, who, f"a tower is frozen until it declares an owner, but {learning[:3]} take gradients")
    tower.train()
    awake = [name for name, module in tower.named_modules() if module.training]
    require(not awake, who, f"train() on a frozen tower must leave it in eval mode, but {awake[:3]} woke up")


def _check_sublayers(tower: Tower, who: str, inputs: Tensor) -> None:
    subs, info = tower.subs, tower.info
    require(subs, who, "subs is empty; a tower is a list of sublayers")
    places = [(sub.stage, sub.block) for sub in subs]
    require(places == sorted(places), who, "sublayers must be in order of stage and block")
    blocks = sorted({sub.block for sub in subs})
    require(blocks == list(range(len(blocks))), who, "blocks must be numbered from 0 through the whole tower")
    tokens, aux = tower.embed(tower.frontend(inputs))
    for sub in subs:
        tokens = tower.join(sub, tokens, tower.run(sub, tokens, aux))
        declared = sub.grid[0] * sub.grid[1] + info.class_tokens, sub.width
        require(
            tuple(tokens.shape[1:]) == declared,
            who,
            f"{sub.kind} of block {sub.block} declares [N, C] = {declared}, the tokens are {tuple(tokens.shape[1:])}",
        )
    final = tuple(tower.final(tokens).shape[1:])
    said = info.grid[0] * info.grid[1] + info.class_tokens, info.width
    require(final == said, who, f"info says final tokens [N, C] = {said}, they are {final}")


def _check_swap(tower: Tower, who: str, inputs: Tensor) -> None:
    tokens, aux = tower.embed(tower.frontend(inputs))
    for sub in tower.subs:
        out = tower.run(sub, tokens, aux)
        if sub.kind == "mlp":
            swapped = tower.run(sub, tokens, aux, swap=tower.mlp(sub))
            require(
                torch.equal(out, swapped), who, f"swapping the MLP of block {sub.block} by itself must change nothing"
            )
        if sub.kind == "attn":
            rows = tokens[:, :1] * 0.5
            changed = tower.run(sub, tokens, aux, prefix=(rows, rows + 1))
            require(
                changed.shape == out.shape, who, f"a prefix must not change the number of tokens of block {sub.block}"
            )
            silent = not bool(out.any())  # a norm that starts at zero
            require(
                silent or not torch.equal(changed, out),
                who,
                f"a prefix on the attention of block {sub.block} has no effect",
            )
        tokens = tower.join(sub, tokens, out)
