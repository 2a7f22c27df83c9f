"""What the released models compute, from tensors under the authors' keys: the equations of avmoe.md 3 and tasks.md, written plainly.

Nothing of ours is used but the sublayers of the towers, which have tests of their own. All in eval mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from released_layout import Released
from torch import Tensor, nn

from shared_backbones.tower import Tower


class Keys:
    """The tensors below a prefix, and the layers made of them."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def at(self, name: str) -> Keys:
        return Keys(self.tensors, f"{self.prefix}{name}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-5)

    def batch_norm(self, name: str, x: Tensor) -> Tensor:
        part = self.at(name)
        return F.batch_norm(x, part["running_mean"], part["running_var"], part["weight"], part["bias"])

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self[f"{name}.weight"]
        return F.conv2d(x, weight, self[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def attend(self, name: str, query: Tensor, memory: Tensor, heads: int) -> Tensor:
        """Multi-head attention with biases, ``[b, n, d]`` and ``[b, m, d]``."""
        weight, bias = self[f"{name}.in_proj_weight"].chunk(3), self[f"{name}.in_proj_bias"].chunk(3)
        q, k, v = (x @ w.T + b for x, w, b in zip((query, memory, memory), weight, bias, strict=True))
        return self.linear(f"{name}.out_proj", heads_of(q, k, v, heads))

    def lstm(self, name: str, x: Tensor, bidirectional: bool = True) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        names = [
            key.removeprefix(f"{self.prefix}{name}.") for key in self.tensors if key.startswith(f"{self.prefix}{name}.")
        ]
        hidden = self[f"{name}.weight_hh_l0"].shape[1]
        layer = nn.LSTM(x.shape[-1], hidden, batch_first=True, bidirectional=bidirectional)
        layer.load_state_dict({key: self[f"{name}.{key}"] for key in names})
        return layer(x)


def heads_of(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


# ---------------------------------------------------------------------- adapters
def mixture(keys: Keys, released: Released, x: Tensor, other: Tensor, frames: int) -> Tensor:
    """One MoE adapter: own tokens ``[B, N, C]``, other tokens ``[B, M, D]``."""
    token = keys["conv_adapter.weight"][:, :, 0, 0]
    aligned = torch.einsum("nm,bmd->bnd", token, other) + keys["conv_adapter.bias"][None, :, None]
    aligned = keys.linear("fc", aligned)
    logits = keys.linear("router.0", torch.cat([x.mean(1), aligned.mean(1)], -1)).relu()
    weights = keys.linear("router.4", keys.linear("router.2", logits).relu()).softmax(-1)
    outputs = [_cross(keys.at(f"multimodal_experts.{j}"), released, x, aligned) for j in range(released.cross)]
    outputs += [_uni(keys.at(f"singlemodal_experts.{j}"), released, x, frames) for j in range(released.uni)]
    return sum(weights[:, e, None, None] * y for e, y in enumerate(outputs))


def _through_latents(latents: Tensor, gate: Tensor, x: Tensor, read: Tensor) -> Tensor:
    found = latents + torch.softmax(latents @ read.transpose(1, 2), -1) @ read
    return x + gate * torch.softmax(x @ found.transpose(1, 2), -1) @ found


def _cross(keys: Keys, released: Released, x: Tensor, aligned: Tensor) -> Tensor:
    return _bottleneck(keys, released, _through_latents(keys["my_tokens"], keys["gate_av"], x, aligned), relu=True)


def _uni(keys: Keys, released: Released, x: Tensor, frames: int) -> Tensor:
    if released.self_attention == "latent":
        x = _through_latents(keys["my_tokens"], keys["gate_self"], x, x)
    elif released.self_attention == "dense":
        rows = torch.softmax(x @ x.transpose(1, 2), -1)
        x = x + keys["gate_av"] * rows.transpose(1, 2) @ x
    elif released.self_attention == "temporal":
        # One clip per batch, as it is tested: the released attention over the batch is one over the clip's frames.
        x = torch.cat(
            [keys.attend("self_attention", *2 * [clip.transpose(0, 1)], 4).transpose(0, 1) for clip in x.split(frames)]
        )
    return _bottleneck(keys, released, x, relu=False)


def _bottleneck(keys: Keys, released: Released, x: Tensor, relu: bool) -> Tensor:
    z = keys.norm("ln_before", x).transpose(1, 2).unsqueeze(-1)
    z = F.conv2d(z, keys["down_sampler.weight"], groups=released.groups)
    if released.norm:
        z = keys.batch_norm("bn1", z)
    z = F.conv2d(z.relu() if relu else z, keys["up_sampler.weight"], groups=released.groups)
    if released.norm:
        z = keys.batch_norm("bn2", z)
    y = keys.norm("ln_post", z.squeeze(-1).transpose(1, 2))
    return keys["gate"] * y if "gate" in keys else y


# ---------------------------------------------------------------------- towers
@dataclass
class Seen:
    """Final tokens and visual stage maps, ``[b·T, N, C]``; HTS-AT's final norm is never applied."""

    visual: Tensor
    audio: Tensor
    stages: list[Tensor]


def towers(
    keys: Keys, released: Released, visual: Tower, audio: Tower, frames: Tensor, sound: Tensor, seconds: int
) -> Seen:
    """Both towers in lock-step with the released placement: the audio block is never opened (avmoe.md 3.2)."""
    v, v_aux = visual.embed(frames)
    a, a_aux = audio.embed(sound)
    v_blocks, a_blocks = _blocks(visual), _blocks(audio)
    maps, kept, done_v, done_a = [], 0, 0, 0
    for stage, (deep, shallow) in enumerate(zip(visual.info.depths, audio.info.depths, strict=True)):
        every = deep // shallow
        adapted = released.skip == 1 or (stage + 1) % released.skip != 0
        for block in range(deep):
            merge, attn, mlp = v_blocks[done_v + block]
            v = visual.run(merge, v, v_aux) if merge else v
            if (block + 1) % every:
                v = v + visual.run(attn, v, v_aux)
                v = v + visual.run(mlp, v, v_aux)
                continue
            a_merge, a_attn, a_mlp = a_blocks[done_a + block // every]
            a = audio.run(a_merge, a, a_aux) if a_merge else a

            def residual(
                modality: str, site: str, own: Tensor, other: Tensor, adapted=adapted, kept=kept
            ) -> Tensor | float:
                part = keys.at(f"{modality}_{released.spelling}adapter_blocks_{site}.{kept}")
                return mixture(part, released, own, other, seconds) if adapted else 0.0

            a1, v1 = residual("audio", "p1", a, v), residual("vis", "p1", v, a)
            v = v + visual.run(attn, v, v_aux) + v1
            a = a + audio.run(a_attn, a, a_aux)
            a = a + audio.run(a_mlp, a, a_aux) + a1
            a2, v2 = residual("audio", "p2", a, v), residual("vis", "p2", v, a)
            v = v + visual.run(mlp, v, v_aux) + v2
            a = a + a2
            kept += adapted
        maps.append(v)
        done_v, done_a = done_v + deep, done_a + shallow
    return Seen(visual.final(v), a, maps)


def _blocks(tower: Tower) -> list[tuple]:
    blocks: list[dict] = [{} for _ in range(sum(tower.info.depths))]
    for sub in tower.subs:
        blocks[sub.block][sub.kind] = sub
    return [(block.get("merge"), block["attn"], block["mlp"]) for block in blocks]


# ---------------------------------------------------------------------- heads
def _encode(keys: Keys, x: Tensor) -> Tensor:
    x = keys.linear("affine_matrix", x)
    for number in range(2):
        layer = keys.at(f"encoder.layers.{number}")
        x = layer.norm("norm1", x + layer.attend("self_attn", x, x, 4))
        x = layer.norm("norm2", x + layer.linear("linear2", layer.linear("linear1", x).relu()))
    return x


def _decode(keys: Keys, query: Tensor, memory: Tensor) -> Tensor:
    query = keys.linear("affine_matrix", query)
    layer = keys.at("decoder.layers.0")
    x = layer.norm("norm1", query + layer.attend("multihead_attn", query, torch.cat([memory, query], 1), 4))
    return layer.norm("norm2", x + layer.linear("linear2", layer.linear("linear1", x).relu()))


def ave(keys: Keys, visual: Tensor, audio: Tensor) -> dict[str, Tensor]:
    """Clips ``[b, T, N, C]`` of both towers → the outputs of the AVE head (tasks.md 1.4)."""
    t = keys.at("temporal_attn")
    v = t.linear("v_fc", visual.mean(2)).relu()
    v = t.lstm("audio_visual_rnn_layer.visual_rnn", v)[0]
    a = t.lstm("audio_visual_rnn_layer.audio_rnn", t.linear("a_fc", audio.mean(2)))[0]
    k_v, k_a = _encode(t.at("video_encoder"), v), _encode(t.at("audio_encoder"), a)
    a, v = _decode(t.at("audio_decoder"), a, k_v), _decode(t.at("video_decoder"), v, k_a)
    g_a, g_v = (t.linear(f"{name}_gated.0", k).sigmoid() for name, k in (("audio", k_a), ("video", k_v)))
    v, a = v * (1 + 0.1 * g_a), a * (1 + 0.1 * g_v)
    c = keys.at("CMBS")
    strongest = [
        c.linear(name, x).sort(1, descending=True).values[:, :4].mean(1)
        for name, x in (("video_cas", v), ("audio_cas", a))
    ]
    scores = (strongest[0] + strongest[1]) / 2
    fused = (v + a) / 2
    event = c.linear("localize_module.event_classifier", fused.max(1).values) + 0.3 * scores
    return {"relevance": c.linear("localize_module.classifier", fused)[..., 0], "event": event, "scores": scores}


def _group(keys: Keys, x: Tensor, tokens: Tensor, hard: bool) -> tuple[Tensor, Tensor]:
    tokens, x = keys.norm("norm_tokens", tokens), keys.norm("norm_x", x)
    hidden = keys.linear("mlp_inter.fc1", tokens.transpose(1, 2))
    p = keys.norm("norm_post_tokens", keys.linear("mlp_inter.fc2", F.gelu(hidden)).transpose(1, 2))
    pre = keys.at("pre_assign_attn")
    q, k, v = (pre.linear(f"attn.{n}_proj", y) for n, y in (("q", p), ("k", x), ("v", x)))
    p = p + pre.linear("attn.proj", heads_of(q, k, v, 8))
    p = pre.norm("norm_post", p + pre.linear("mlp.fc2", F.gelu(pre.linear("mlp.fc1", pre.norm("norm2", p)))))
    q, k, v = (keys.linear(f"assign.{n}_proj", y) for n, y in (("q", p), ("k", x), ("v", x)))
    soft = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(1)
    chosen = F.one_hot(soft.argmax(1), soft.shape[1]).transpose(1, 2).to(soft) if hard else soft
    new = keys.linear("assign.proj", chosen / (chosen.sum(2, keepdim=True) + 1) @ v) + p
    return new + keys.linear(
        "mlp_channels.fc2", F.gelu(keys.linear("mlp_channels.fc1", keys.norm("norm_new_x", new)))
    ), soft


def _modality(keys: Keys, x: Tensor, tokens: Tensor, depth: int, other: Tensor | None = None) -> tuple[Tensor, Tensor]:
    both = torch.cat([x, tokens], 1)
    for number in range(depth):
        block = keys.at(f"blocks.{number}")
        q, k, v = block.linear("attn.qkv", block.norm("norm1", both)).chunk(3, -1)
        both = both + block.linear("attn.proj", heads_of(q, k, v, 8))
        both = both + block.linear("mlp.fc2", F.gelu(block.linear("mlp.fc1", block.norm("norm2", both))))
    x, tokens = both[:, : x.shape[1]], both[:, x.shape[1] :]
    if other is not None:
        x = _group(keys.at("han_encoder"), x, other, hard=True)[0]
    return _group(keys.at("grouping"), x, tokens, hard=False)


def avvp(keys: Keys, visual: Tensor, audio: Tensor, motion: Tensor) -> dict[str, Tensor]:
    """The grouping head (tasks.md 2.4)."""
    b = len(visual)
    a0 = keys.linear("fc_a", audio.mean(2))
    v0 = keys.linear("fc_fusion", torch.cat([keys.linear("fc_v", visual.mean(2)), keys.linear("fc_st", motion)], -1))
    a_token, v_token = (keys[f"{name}_token"].expand(b, -1, -1) for name in ("audio", "visual"))
    heard, a_soft = _modality(keys.at("audio_cug"), a0, a_token, 3, v0)
    seen, v_soft = _modality(keys.at("visual_cug"), v0, v_token, 3)
    joint = _modality(keys.at("av_mcg"), heard, seen, 6)[0]
    p_a, p_v = keys.linear("fc_prob_a", heard), keys.linear("fc_prob_v", seen)
    return {
        "clip": keys.linear("fc_prob", joint)[..., 0],
        "clip_audio": p_a[..., 0],
        "clip_visual": p_v[..., 0],
        "audio": (p_a.sigmoid() * (1 + a_soft.softmax(2))).transpose(1, 2),
        "visual": (p_v.sigmoid() * (1 + v_soft.softmax(2))).transpose(1, 2),
        "class_audio": keys.linear("fc_cls", a_token),
        "class_visual": keys.linear("fc_cls", v_token),
    }


def avs(keys: Keys, maps: Sequence[Tensor], audio: Tensor, gamma: float, mask: int) -> Tensor:
    """Maps ``[b, T, N, C]`` and audio tokens → mask logits ``[b, T, mask, mask]`` (tasks.md 3.3), TPAVI in its direct form."""
    b, t = maps[0].shape[:2]
    grids = []
    for i, tokens in enumerate(maps):
        side = int(tokens.shape[2] ** 0.5)
        grid = keys.linear(f"x{i + 1}_linear_", tokens).flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
        size = mask // (4 * 2**i)
        grids.append(F.interpolate(grid, (size, size), mode="bicubic", align_corners=False))
    sound, part = keys.linear("audio_linear", audio.mean(2)), keys.at("temporal_attn")
    gates_v = []
    for i, grid in enumerate(grids):
        v = part.linear(f"v_fc.{i}", grid.mean((2, 3)).unflatten(0, (b, t))).relu()
        v = part.lstm(f"audio_visual_rnn_layer.{i}.visual_rnn", v)[0]
        a = part.lstm(f"audio_visual_rnn_layer.{i}.audio_rnn", sound)[0]
        gate_a = part.linear(f"audio_gated.{i}.0", _encode(part.at(f"audio_encoder.{i}"), a)).sigmoid()
        gates_v.append(part.linear(f"video_gated.{i}.0", _encode(part.at(f"video_encoder.{i}"), v)).sigmoid())
        grids[i] = grid * (1 + gamma * gate_a.flatten(0, 1)[..., None, None])
    sound = sound * (1 + gamma * sum(gates_v) / 4)
    fused = [_tpavi(keys.at(f"tpavi_b{i + 1}"), grid, sound) for i, grid in enumerate(grids)]
    x = _path(keys.at("path4"), fused[3])
    for i in (2, 1, 0):
        x = _path(keys.at(f"path{i + 1}"), x, fused[i])
    x = F.interpolate(keys.conv("output_conv.0", x), scale_factor=2, mode="bilinear", align_corners=False)
    return keys.conv("output_conv.4", keys.conv("output_conv.2", x).relu())[:, 0].unflatten(0, (b, t))


def _tpavi(keys: Keys, grid: Tensor, sound: Tensor) -> Tensor:
    b, t = sound.shape[:2]
    x = grid.unflatten(0, (b, t)).transpose(1, 2)  # [b, C, T, H, W]
    audio = keys.linear("align_channel", sound).transpose(1, 2)[..., None, None].expand_as(x)
    theta, phi, g = (
        F.conv3d(y, keys[f"{name}.weight"], keys[f"{name}.bias"]).flatten(2)
        for name, y in (("theta", x), ("phi", audio), ("g", x))
    )
    y = (theta.transpose(1, 2) @ phi / theta.shape[2] @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
    z = keys.batch_norm("W_z.1", F.conv3d(y, keys["W_z.0.weight"], keys["W_z.0.bias"])) + x
    return keys.norm("norm_layer", z.movedim(1, -1)).movedim(-1, 2).flatten(0, 1)


def _unit(keys: Keys, x: Tensor) -> Tensor:
    r = x.relu()
    return keys.conv("conv2", keys.conv("conv1", r).relu()) + r


def _path(keys: Keys, x: Tensor, skip: Tensor | None = None) -> Tensor:
    if skip is not None:
        x = x + _unit(keys.at("resConfUnit1"), skip)
    return F.interpolate(_unit(keys.at("resConfUnit2"), x), scale_factor=2, mode="bilinear", align_corners=True)


def ground(keys: Keys, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Frame maps ``[…, N, d]`` and audio means ``[…, D_a]`` → the sound a and the grounded frames s (tasks.md 4.4, 1 and 2)."""
    a = keys.linear("fc_a2", keys.linear("fc_a1", audio).relu())
    unit, direction = F.normalize(visual, dim=-1), F.normalize(a, dim=-1)
    attention = (unit * direction.unsqueeze(-2)).sum(-1).softmax(-1)
    grounded = (attention.unsqueeze(-1) * unit).sum(-2)
    return a, keys.linear("fc_gl", torch.cat([visual.mean(-2), grounded], -1).tanh())


def match(keys: Keys, a: Tensor, s: Tensor) -> Tensor:
    x = torch.cat([a, s], -1)
    for number in (1, 2, 3):
        x = keys.linear(f"fc{number}", x).relu()
    return keys.linear("fc4", x)


def avqa(keys: Keys, visual: Tensor, audio: Tensor, question: Tensor) -> Tensor:
    """Answer logits over the first 42 answers (tasks.md 4.4)."""
    a, s = ground(keys, visual, audio.mean(2))
    words = keys["question_encoder.word2vec.weight"][question].tanh()
    _, (hidden, cell) = keys.lstm("question_encoder.lstm", words, bidirectional=False)
    q = keys.linear("question_encoder.fc", torch.cat([hidden[0], cell[0]], -1).tanh())
    read = {}
    for name, seconds, digit in (("v", s, 1), ("a", a, 2)):
        x = keys.attend(f"attn_{name}", q[:, None], seconds, 4)[:, 0]
        read[name] = keys.norm(
            f"norm{digit}", x + keys.linear(f"linear{digit}2", keys.linear(f"linear{digit}1", x).relu())
        )
    fused = keys.linear("fc_fusion", torch.cat([read["a"] + a.mean(1), read["v"] + s.mean(1)], -1).tanh())
    return keys.linear("fc_ans", (fused * q).tanh())[..., :42]
