"""Prompts generated from the input: rows of a task's dictionary, mixed for each sample by a small transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.walk import Ctx


class DynamicPrompts(nn.Module):
    """One task's dictionary, a generator for every block and a modulator, all serving both modalities (php.md 3.5).

    Args:
        width: token width C of prompts, dictionary and inputs.
        heads: heads of the generators' attention.
        blocks: how many blocks G of the tower receive prompts; one generator each.
        dictionary: rows of the dictionary.
        rows: rows of one prompt, keys and values together, the keys first.
        depth: layers of a generator.
        mlp: hidden width of a layer's MLP, C by default.

    Raises:
        ValueError: a size is not positive, heads do not divide the width, or rows cannot be halved into keys and values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        blocks: int,
        dictionary: int = 256,
        rows: int = 32,
        depth: int = 3,
        mlp: int | None = None,
    ) -> None:
        super().__init__()
        hidden = width if mlp is None else mlp
        sizes = {"width": width, "heads": heads, "blocks": blocks, "dictionary": dictionary}
        for name, size in (sizes | {"rows": rows, "depth": depth, "mlp": hidden}).items():
            if size < 1:
                raise ValueError(f"generated prompts: {name} is {size}, expected a positive number")
        if width % heads:
            raise ValueError(f"generated prompts: width {width} cannot be split into {heads} heads")
        if rows % 2:
            raise ValueError(f"generated prompts: {rows} rows cannot be halved into keys and values")
        self.width, self.rows = width, rows
        self.dictionary = nn.Parameter(0.02 * torch.randn(dictionary, width))
        self.generators = nn.ModuleList(Generator(width, heads, dictionary, rows, depth, hidden) for _ in range(blocks))
        self.modulator = Modulator(width)

    def forward(self, own: Tensor, other: Tensor, ctx: Ctx) -> tuple[Tensor, Tensor]:
        """Generate the prompts of all blocks; every row of the batch stands alone.

        Args:
            own: embedded visual tokens ``[N, L, C]``.
            other: pooled audio map ``[N, L_a, C]`` (:func:`pooled_map`).
            ctx: not used.

        Returns:
            Visual and audio prompts ``[N, G, rows, C]``; the first half of the rows are keys, the second values.

        Raises:
            ValueError: the width of an input is not C.
        """
        streams = (own, other)
        for name, tokens in zip(("visual", "audio"), streams, strict=True):
            if tokens.shape[-1] != self.width:
                raise ValueError(
                    f"generated prompts of width {self.width}: {name} tokens are {list(tokens.shape)}, "
                    f"expected [rows, tokens, {self.width}]"
                )
        made = [generator(streams, self.dictionary) for generator in self.generators]
        visual, audio = (
            self.modulator(torch.stack([pair[i] for pair in made], 1), tokens.mean(1))
            for i, tokens in enumerate(streams)
        )
        return visual, audio


class Generator(nn.Module):
    """A transformer over ``[tokens; dictionary]`` whose first token says how dictionary rows are mixed into a prompt."""

    def __init__(self, width: int, heads: int, dictionary: int, rows: int, depth: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(depth))
        self.mix = nn.Linear(width, rows * dictionary)

    def forward(self, streams: Sequence[Tensor], dictionary: Tensor) -> list[Tensor]:
        """Return one unmodulated prompt ``[N, rows, C]`` per stream ``[N, L, C]``, given the dictionary ``[K, C]``."""
        *layers, last = [layer for layer in self.layers if isinstance(layer, Layer)]
        # Before the first layer has run, the dictionary is the same for every row of every stream.
        shared = layers[0].project(dictionary.unsqueeze(0)) if layers else ()
        prompts = []
        for tokens in streams:
            state = torch.cat((tokens, dictionary.expand(len(tokens), -1, -1)), 1)
            for number, layer in enumerate(layers):
                if number:
                    state = layer.finish(state, layer.attend(*layer.project(state)))
                    continue
                pairs = zip(layer.project(tokens), shared, strict=True)
                joined = [torch.cat((mine, all_.expand(len(tokens), -1, -1, -1)), 2) for mine, all_ in pairs]
                state = layer.finish(state, layer.attend(*joined))
            weights = self.mix(last.first(state)).unflatten(-1, (-1, len(dictionary))).softmax(-1)
            prompts.append(weights @ dictionary)
        return prompts


class Layer(nn.Module):
    """A pre-norm transformer layer on ``[N, S, C]``; query, key and value maps have no bias, there is no dropout."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values ``[N, heads, S, C/heads]``."""
        split = self.qkv(self.norm_attention(tokens)).unflatten(-1, (3, self.heads, -1))
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return what every token found ``[N, S, C]``."""
        return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)

    def finish(self, tokens: Tensor, found: Tensor) -> Tensor:
        """Add what attention found and what the MLP makes of it."""
        tokens = tokens + self.out(found)
        return tokens + self.fc2(F.gelu(self.fc1(self.norm_mlp(tokens))))

    def first(self, tokens: Tensor) -> Tensor:
        """Return the layer's output for the first token alone, ``[N, C]``.

        With a single query per head, q·(W_k x) = (W_kᵀ q)·x and Σ a (W_v x) = W_v (Σ a x): the heads' queries are taken back
        to token space, and no token needs a key or a value.
        """
        normed = self.norm_attention(tokens)
        query, key, value = (part.unflatten(0, (self.heads, -1)) for part in self.qkv.weight.chunk(3))  # [h, C/h, C]
        asked = torch.einsum("nc,hdc->nhd", normed[:, 0], query)
        asked = torch.einsum("nhd,hdc->nhc", asked, key)
        found = F.scaled_dot_product_attention(asked, normed, normed, scale=key.shape[1] ** -0.5)
        return self.finish(tokens[:, 0], torch.einsum("nhc,hdc->nhd", found, value).flatten(1))


class Modulator(nn.Module):
    """Weighs the rows of a prompt by how they agree with the input's context (php.md 3.5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, prompts: Tensor, context: Tensor) -> Tensor:
        """Return ``σ((W_q P)(W_k c)ᵀ / √C) ⊙ P`` for prompts ``[N, G, rows, C]`` and contexts ``[N, C]``."""
        key = self.key(context)
        # (W_q p + b_q)·k = p·(W_qᵀ k) + b_q·k: one product per sample instead of one per row.
        column, constant = key @ self.query.weight, key @ self.query.bias
        agreement = (prompts @ column[:, None, :, None]).squeeze(-1) + constant[:, None, None]
        return (agreement * prompts.shape[-1] ** -0.5).sigmoid().unsqueeze(-1) * prompts


def pooled_map(tokens: Tensor, grid: tuple[int, int], width: int) -> Tensor:
    """Shrink a map of tokens and widen it to the width of the prompts (php.md 3.5).

    Two 2 × 2 max pools with stride 2, then ``width / D`` consecutive tokens in row-major order side by side.

    Args:
        tokens: ``[N, L, D]``, row-major over ``grid``.
        grid: rows and columns of the map, L in all.
        width: channels of the result.

    Returns:
        ``[N, L / 16 · D / width, width]``.

    Raises:
        ValueError: tokens and grid disagree, the grid cannot be halved twice, D does not divide the width, or the pooled tokens
            cannot be grouped.
    """
    (batch, count, narrow), (rows, columns) = tokens.shape, grid
    if count != rows * columns:
        raise ValueError(f"pooled map: {count} tokens are no {rows} × {columns} grid")
    if rows % 4 or columns % 4:
        raise ValueError(f"pooled map: a {rows} × {columns} grid cannot be halved twice")
    if width % narrow:
        raise ValueError(f"pooled map: width {width} is no multiple of the tokens' width {narrow}")
    pooled, together = count // 16, width // narrow
    if pooled % together:
        raise ValueError(
            f"pooled map: {pooled} pooled tokens cannot be joined by {together} (width {width} over {narrow})"
        )
    cells = tokens.reshape(batch, rows // 4, 4, columns // 4, 4, narrow).amax((2, 4))
    return cells.reshape(batch, pooled // together, width)


def as_bias(prompts: Tensor, grid: tuple[int, int], width: int) -> Tensor:
    """Lay prompts out over a map of tokens, as something to add to its first channels (php.md 3.5, audio use).

    Args:
        prompts: ``[N, rows, C]``.
        grid: rows and columns of the map, n × n = L tokens.
        width: channels of the map.

    Returns:
        ``[N, L, width]``: the numbers of a prompt in row-major order as n × n × m in channels [0, m), zero in the others.

    Raises:
        ValueError: the grid is not square, its tokens do not divide rows · C, or m exceeds the width.
    """
    (batch, rows, channels), tokens = prompts.shape, grid[0] * grid[1]
    if grid[0] != grid[1]:
        raise ValueError(f"prompt as bias: the {grid[0]} × {grid[1]} grid of {tokens} tokens is not square")
    if rows * channels % tokens:
        raise ValueError(
            f"prompt as bias: {rows} rows of {channels} channels are {rows * channels} numbers, "
            f"which {tokens} tokens do not divide"
        )
    filled = rows * channels // tokens
    if filled > width:
        raise ValueError(
            f"prompt as bias: {rows} rows of {channels} channels over {tokens} tokens fill {filled} channels, "
            f"but the tokens have {width}"
        )
    return F.pad(prompts.reshape(batch, tokens, filled), (0, width - filled))
