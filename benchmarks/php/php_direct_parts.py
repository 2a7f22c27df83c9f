"""The plain formulation of PHP's modules: every token of every layer, every row by itself, all maps in the order they are written.

A reference only, from php.md 3.4 to 3.6. It computes with the parameters of our modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avcl_core.adapters.cross_modal import CrossModalAdapter
from avcl_core.prompts.generator import DynamicPrompts, Layer
from avcl_core.prompts.pool import PromptPool

Pair = tuple[Tensor, Tensor]


# ------------------------------------------------------------------ 3.4, shallow
def adapt(adapter: CrossModalAdapter, own: Tensor, other: Tensor) -> Tensor:
    """Return the residual ``[N, L, D]`` of own tokens ``[N, L, D]`` and source tokens ``[N, L', D']``."""
    fusion, o = adapter.fusion, adapter.options
    assert fusion is not None
    token = fusion.align.token
    mixed = F.conv1d(other, token.weight.unsqueeze(-1), token.bias)  # tokens are the channels of the convolution
    source = fusion.align.channel(mixed)
    latents = fusion.latents.expand(len(own), -1, -1)
    latents = latents + torch.bmm(latents, source.mT).softmax(-1) @ source
    tokens = own + fusion.gate * (torch.bmm(own, latents.mT).softmax(-1) @ latents)
    context = source.mean(1, keepdim=True)

    u = (F.relu(fusion.channel_context(context)) * F.relu(fusion.channel_tokens(tokens))).mean(1, keepdim=True)
    channel = fusion.channel_up(F.relu(fusion.channel_down(u))).sigmoid()
    hidden = F.relu(fusion.spatial_tokens(tokens * (1 + channel))) * F.relu(fusion.spatial_context(context))
    spatial = fusion.spatial_out(hidden).sigmoid()
    temporal = fusion.temporal(context).sigmoid()
    tokens = tokens * (o.alpha * channel + o.beta * spatial + o.gamma * temporal + 1 - o.alpha)

    part = adapter.bottleneck
    image = part.norm_before(tokens).transpose(1, 2).unsqueeze(-1)  # [N, D, L, 1]
    image = F.relu(F.conv2d(image, part.down.weight[:, :, None, None], groups=o.groups))
    image = F.conv2d(image, part.up.weight[:, :, None, None], groups=o.groups)
    out = image.squeeze(-1).transpose(1, 2)
    if part.norm_after is not None:
        out = part.norm_after(out)
    return part.gate * out


# ------------------------------------------------------------------ 3.5, mid
def pooled(tokens: Tensor, grid: tuple[int, int], width: int) -> Tensor:
    """Return the audio map after two max pools, consecutive tokens joined to ``width`` channels."""
    image = tokens.transpose(1, 2).unflatten(2, grid)
    image = F.max_pool2d(F.max_pool2d(image, 2), 2)
    return image.permute(0, 2, 3, 1).reshape(len(tokens), -1, width)


def generate(prompts: DynamicPrompts, embedded: Tensor) -> list[Tensor]:
    """Return one prompt ``[N, rows, C]`` per block for one modality."""
    found, context = [], embedded.mean(1, keepdim=True)
    for generator in prompts.generators:
        state = torch.cat([embedded, prompts.dictionary.expand(len(embedded), -1, -1)], 1)
        for layer in generator.layers:
            state = whole_layer(layer, state)
        weights = generator.mix(state[:, 0]).view(len(state), prompts.rows, -1).softmax(-1)
        rows = weights @ prompts.dictionary
        query, key = prompts.modulator.query(rows), prompts.modulator.key(context)
        found.append((query @ key.mT * rows.shape[-1] ** -0.5).sigmoid() * rows)
    return found


def whole_layer(layer: Layer, state: Tensor) -> Tensor:
    """A pre-norm transformer layer on all tokens."""
    n, s, c = state.shape
    query, key, value = layer.qkv(layer.norm_attention(state)).chunk(3, -1)
    split = (x.view(n, s, layer.heads, c // layer.heads).transpose(1, 2) for x in (query, key, value))
    state = state + layer.out(F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(n, s, c))
    return state + layer.fc2(F.gelu(layer.fc1(layer.norm_mlp(state))))


def biased(tokens: Tensor, prompt: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return a map of sound ``[N, n·n, D]`` whose first channels have the numbers of a prompt added, in row-major order."""
    plane = tokens.unflatten(1, grid)
    numbers = prompt.reshape(len(prompt), *grid, -1)
    filled = numbers.shape[-1]
    return torch.cat([plane[..., :filled] + numbers, plane[..., filled:]], -1).flatten(1, 2)


# ------------------------------------------------------------------ 3.6, deep
def choose(pool: PromptPool, embedded: Tensor, frames: int) -> tuple[list[list[Pair]], Tensor]:
    """Return, per block and video, the key and value rows that were chosen, and the pull loss of the videos."""
    clips = embedded.split(frames)
    rows: list[list[Pair]] = [[] for _ in pool.rows]
    far = []
    for clip in clips:
        query = clip.reshape(-1, clip.shape[-1]).mean(0)
        order = torch.zeros(1, dtype=torch.long)
        if pool.keys is not None:
            cosine = torch.stack([F.cosine_similarity(query, key, dim=0) for key in pool.keys])
            order = cosine.argsort(descending=True)[: pool.top_k]
            far.append((1 - cosine[order]).sum())
        for block, entries in zip(rows, pool.rows, strict=True):
            keys, values = entries[0], entries[-1]
            block.append((torch.cat(list(keys[order])), torch.cat(list(values[order]))))
    return rows, pool.pull * torch.stack(far).mean() if far else torch.zeros(())


def spread(videos: list[Pair], frames: int) -> Pair:
    """Return key and value rows ``[N, n, C]``: every frame of a video has the video's."""
    keys, values = (torch.stack([pair[i] for pair in videos for _ in range(frames)]) for i in (0, 1))
    return keys, values


def gates_open(module: nn.Module, value: float = 0.1) -> None:
    """Give every gate of the adapters a value, so that they reach the result."""
    for part in module.modules():
        if isinstance(part, CrossModalAdapter):
            gates = [part.bottleneck.gate] + ([part.fusion.gate] if part.fusion is not None else [])
            for gate in gates:
                nn.init.constant_(gate, value)
