"""The whole forward of PHP written out (php.md 3.2 to 3.7): no walk, no sites, no banks, nothing prepared, cut or kept.

A reference only. Texts of all 77 places are encoded for every batch; every layer of a generator computes all of its tokens.
It reads the parameters of a :class:`Php` model and the library's modules inside its towers, and runs none of their code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from php_direct_parts import adapt, biased, choose, generate, pooled, spread
from torch import Tensor, nn

from avcl_core.batch import Batch, Outputs
from avcl_core.features import Features
from avcl_core.models.php import Php

SCALE = 100.0
"""Of the contrastive term (4.1)."""
Pair = tuple[Tensor, Tensor]


@dataclass
class Found:
    """What the direct forward returns: features for a head, and the terms that the model adds to the loss."""

    features: Features
    aux: dict[str, Tensor]


def forward(model: Php, batch: Batch, training: bool) -> tuple[Outputs, dict[str, Tensor]]:
    """Return the head's outputs and the terms of a batch whose rows are all of one experience."""
    found = features(model, batch, training)
    return model.heads[batch.task](found.features, batch), found.aux


def features(model: Php, batch: Batch, training: bool) -> Found:
    """Return final tokens, last tokens before the final norms, similarities, and terms."""
    o, clip, clap = model.options, net(model, "visual"), net(model, "audio")
    slot, frames = str(batch.experience), batch.inputs["visual"].shape[1]
    aux: dict[str, Tensor] = {}
    raw, x = embed_frames(clip, batch.inputs["visual"].flatten(0, 1))
    y, grid = embed_sound(clap, batch.inputs["audio"].flatten(0, 1))
    maps = pooled(y, grid, x.shape[-1])

    generated: dict[str, list[Tensor]] = {}
    if o.mid.blocks:
        mid = slot_of(model.mid_prompts, slot)
        generated = {"visual": generate(mid, raw), "audio": generate(mid, maps)}
    deep = [block for block in o.deep.blocks if block not in o.mid.blocks]
    chosen: dict[str, list[list[Pair]]] = {}
    for name, embedded in (("visual", raw), ("audio", maps)):
        if name in o.deep.modalities and deep:
            pool = slot_of(model.pools[name], slot)
            chosen[name], pull = choose(pool, embedded, frames)
            if training and pool.keys is not None and pool.pull:
                aux[f"{name} pool pull"] = pull

    stage, block_of_stage = 0, 0
    for block, layer in enumerate(clip.vision_model.encoder.layers):
        encoder = clap.audio_model.audio_encoder
        if block_of_stage == len(encoder.layers[stage].blocks):
            y = merge(encoder.layers[stage].downsample, y, grid)
            grid, stage, block_of_stage = (grid[0] // 2, grid[1] // 2), stage + 1, 0
        sees = hears = None
        if block in o.mid.blocks:
            k = o.mid.blocks.index(block)
            prompt, half = generated["visual"][k], o.mid.rows // 2
            sees = prompt[:, :half], prompt[:, half:]
            y = biased(y, generated["audio"][k], grid)
        elif block in deep:
            j = deep.index(block)
            sees = spread(chosen["visual"][j], frames) if "visual" in chosen else None
            hears = spread(chosen["audio"][j], frames) if "audio" in chosen else None
        x = x + look(layer, x, sees)
        y = swin(encoder.layers[stage].blocks[block_of_stage], y, grid, hears)
        block_of_stage += 1
        if block in o.shallow.blocks:
            x, y = shallow(model, f"{block}_attn", x, y)
        hidden = layer.layer_norm2(x)
        x = x + layer.mlp.fc2(quick_gelu(layer.mlp.fc1(hidden)))
        if block in o.shallow.blocks:
            x, y = shallow(model, f"{block}_mlp", x, y)

    last = {"visual": x, "audio": y}
    final = {"visual": clip.vision_model.post_layernorm(x), "audio": clap.audio_model.audio_encoder.norm(y)}
    similarity = {}
    if model.tasks[batch.task].texts:
        similarity = compare(model, batch.task, final, frames, training, aux)
    clips = {name: value.unflatten(0, (-1, frames)) for name, value in final.items()}
    stages = {name: (value.unflatten(0, (-1, frames)),) for name, value in last.items()}
    return Found(Features(clips, stages, {}, similarity), aux)


def net(model: Php, name: str) -> Any:
    """The library's model inside a tower."""
    return model.towers[name].net


def slot_of(module: Any, slot: str) -> Any:
    """The copy of a task, or the one that all share."""
    return module.slots[slot] if hasattr(module, "slots") else module


def shallow(model: Php, place: str, x: Tensor, y: Tensor) -> Pair:
    """Both residuals from the same pair of streams, then both are added."""
    r_a = adapt(model.parts[f"audio_{place}_add"], y, x)  # type: ignore[arg-type]
    r_v = adapt(model.parts[f"visual_{place}_add"], x, y)  # type: ignore[arg-type]
    return x + r_v, y + r_a


# ------------------------------------------------------------------ the visual tower
def embed_frames(clip: Any, frames: Tensor) -> Pair:
    """Return tokens in front of the first norm, and behind it."""
    inside = clip.vision_model.embeddings
    patches = inside.patch_embedding(frames).flatten(2).transpose(1, 2)
    first = inside.class_embedding.expand(len(frames), 1, -1)
    raw = torch.cat([first, patches], 1) + inside.position_embedding.weight
    return raw, clip.vision_model.pre_layrnorm(raw)


def look(layer: Any, x: Tensor, prefix: Pair | None) -> Tensor:
    """MHA(q = LN(X), k = [K; LN(X)], v = [V; LN(X)]), the prompts in front of the frozen projections."""
    attn, normed = layer.self_attn, layer.layer_norm1(x)
    keys, values = (normed, normed) if prefix is None else (torch.cat([rows, normed], 1) for rows in prefix)
    return attend(attn, normed, keys, values, attn.num_heads)


def attend(attn: Any, queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention with CLIP's four maps."""
    n, length, c = queries.shape
    q, k, v = (
        part(rows).view(n, -1, heads, c // heads).transpose(1, 2)
        for part, rows in ((attn.q_proj, queries), (attn.k_proj, keys), (attn.v_proj, values))
    )
    return attn.out_proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(n, length, c))


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation."""
    return x * torch.sigmoid(1.702 * x)


# ------------------------------------------------------------------ the audio tower
def embed_sound(clap: Any, mels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the normed patches of the folded log-mel, and their grid."""
    encoder = clap.audio_model.audio_encoder
    image = encoder.reshape_mel2img(encoder.batch_norm(mels.transpose(1, 3)).transpose(1, 3))
    patches = encoder.patch_embed.proj(image)
    grid = (patches.shape[2], patches.shape[3])
    return encoder.patch_embed.norm(patches.flatten(2).transpose(1, 2)), grid


def swin(block: Any, y: Tensor, grid: tuple[int, int], prefix: Pair | None) -> Tensor:
    """A whole Swin block; a prefix is seen by every window, without position and without mask."""
    attn, side, shift = block.attention.self, int(block.window_size), int(block.shift_size)
    n, (rows, columns), c = len(y), grid, y.shape[-1]
    plane = block.layernorm_before(y).view(n, rows, columns, c)
    region = regions(rows, columns, side, shift).to(y.device)
    if shift:
        plane = plane.roll((-shift, -shift), (1, 2))
    down, across = rows // side, columns // side
    inside = plane.view(n, down, side, across, side, c).transpose(2, 3).reshape(n * down * across, side * side, c)
    keys = values = inside
    if prefix is not None:
        keys, values = (torch.cat([r.repeat_interleave(down * across, 0), inside], 1) for r in prefix)
    count = keys.shape[1] - side * side
    heads = attn.num_attention_heads

    bias = attn.relative_position_bias_table[offsets(side).to(y.device)].permute(2, 0, 1)  # [heads, side², side²]
    same = region.view(down, side, across, side).transpose(1, 2).reshape(down * across, side * side)
    mask = bias + torch.where(same[:, None, :, None] == same[:, None, None, :], 0.0, -100.0).to(bias)
    mask = F.pad(mask, (count, 0)).repeat(n, 1, 1, 1)
    q, k, v = (
        part(x).view(len(x), -1, heads, c // heads).transpose(1, 2)
        for part, x in ((attn.query, inside), (attn.key, keys), (attn.value, values))
    )
    out = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(-1, side * side, c)
    out = block.attention.output.dense(out)
    out = out.view(n, down, across, side, side, c).transpose(2, 3).reshape(n, rows, columns, c)
    if shift:
        out = out.roll((shift, shift), (1, 2))
    y = y + out.reshape(n, rows * columns, c)
    return y + block.output.dense(F.gelu(block.intermediate.dense(block.layernorm_after(y))))


def regions(rows: int, columns: int, side: int, shift: int) -> Tensor:
    """Return a number for every place of the shifted map; attention stays within a number (Liu et al., ICCV 2021)."""
    found = torch.zeros(rows, columns, dtype=torch.long)
    if shift:
        cuts = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
        for i, down in enumerate(cuts):
            for j, across in enumerate(cuts):
                found[down, across] = 3 * i + j
    return found


def offsets(side: int) -> Tensor:
    """Return the row of the table of relative positions for every pair of places in a window."""
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    apart = place[:, :, None] - place[:, None, :] + side - 1
    return apart[0] * (2 * side - 1) + apart[1]


def merge(down: Any, y: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch merging: four neighbours side by side, normed and reduced."""
    plane = y.view(len(y), *grid, -1)
    four = [plane[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return down.reduction(down.norm(torch.cat(four, -1).flatten(1, 2)))


# ------------------------------------------------------------------ texts (3.7) and the contrastive term (4.1)
def compare(
    model: Php, task: str, final: dict[str, Tensor], frames: int, training: bool, aux: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the logits of every second against the task's texts; in training, the contrastive terms go to ``aux``."""
    clip, clap, mix = net(model, "visual"), net(model, "audio"), model.options.text.adapter
    v = clip.visual_projection(final["visual"][:, 0])
    projection = clap.audio_projection
    a = projection.linear2(F.relu(projection.linear1(final["audio"].mean(1))))
    weights = model.options.contrast
    if training and weights.audio_to_visual + weights.visual_to_audio > 0:
        seen = F.normalize(v.view(-1, frames, v.shape[-1]).mean(1), dim=-1)
        heard = model.text["contrast"](a)
        heard = F.normalize(heard.view(-1, frames, heard.shape[-1]).mean(1), dim=-1)
        logits = SCALE * heard @ seen.T
        aux["audio to visual"] = -weights.audio_to_visual * logits.log_softmax(1).diagonal().mean()
        aux["visual to audio"] = -weights.visual_to_audio * logits.log_softmax(0).diagonal().mean()
    t = class_texts(model, task)
    v, t = (mix * bottleneck(model.text[name], x) + (1 - mix) * x for name, x in (("visual", v), ("names", t)))
    heard_texts = sound_texts(model, task)
    logits = {
        "visual": clip.logit_scale.exp() * F.normalize(v, dim=-1) @ F.normalize(t, dim=-1).T,
        "audio": clap.logit_scale_a.exp() * F.normalize(a, dim=-1) @ F.normalize(heard_texts, dim=-1).T,
    }
    return {name: value.view(-1, frames, value.shape[-1]) for name, value in logits.items()}


def bottleneck(adapter: Any, x: Tensor) -> Tensor:
    """A CLIP-Adapter."""
    return F.relu(F.linear(F.relu(F.linear(x, adapter[0].weight)), adapter[2].weight))


def class_texts(model: Php, task: str) -> Tensor:
    """Return CLIP's features of "[start] context name . [end]", all 77 places of every text."""
    text, side = net(model, "visual").text_model, model.towers["visual"].text
    shared = model.options.context.per == "shared"
    context = (model.text["context"] if shared else model.contexts[task]).vectors
    names = [name.replace("_", " ") + "." for name in model.tasks[task].texts]
    ids = side.tokenize(names)  # type: ignore[union-attr]
    ends = (ids == side.vocabulary.end).int().argmax(1) + len(context)  # type: ignore[union-attr]
    words = text.embeddings.token_embedding(ids.to(context.device))
    tokens = torch.cat([words[:, :1], context.expand(len(ids), -1, -1), words[:, 1:]], 1)[:, : ids.shape[1]]
    tokens = tokens + text.embeddings.position_embedding.weight
    size = tokens.shape[1]
    later = torch.ones(size, size, dtype=torch.bool).triu(1)
    mask = torch.zeros(size, size).masked_fill(later, -torch.inf).to(tokens)
    for layer in text.encoder.layers:
        normed = layer.layer_norm1(tokens)
        tokens = tokens + attend(layer.self_attn, normed, normed, normed, layer.self_attn.num_heads, mask)
        tokens = tokens + layer.mlp.fc2(quick_gelu(layer.mlp.fc1(layer.layer_norm2(tokens))))
    rows = torch.arange(len(ids), device=tokens.device)
    return net(model, "visual").text_projection(text.final_layer_norm(tokens)[rows, ends.to(tokens.device)])


def sound_texts(model: Php, task: str) -> Tensor:
    """Return CLAP's features of "The sounds of …", padded to 77 places."""
    clap, side = net(model, "audio"), model.towers["audio"].text
    ids = side.tokenize([f"The sounds of {name.replace('_', ' ')}" for name in model.tasks[task].texts])  # type: ignore[union-attr]
    ids = ids.to(clap.logit_scale_a.device)
    with torch.no_grad():
        words = clap.text_model.embeddings.word_embeddings.weight
        mask = torch.zeros_like(ids, dtype=words.dtype).masked_fill(ids == side.vocabulary.pad, -1e9)  # type: ignore[union-attr]
        kinds, places = torch.zeros_like(ids), torch.arange(ids.shape[1], device=ids.device) + side.vocabulary.pad + 1  # type: ignore[union-attr]
        found = clap.text_model(
            input_ids=ids, attention_mask=mask[:, None, None], token_type_ids=kinds, position_ids=places.expand_as(ids)
        )
        return clap.text_projection(found.pooler_output)


def live(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that learn."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
