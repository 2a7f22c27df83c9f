"""The mixture of avmoe.md 3.3 to 3.6 written directly from the equations, with loops, and the arrays of its printed values (8.2)."""

import math
from dataclasses import dataclass, field

import numpy as np

B, N, C, M, D, LATENTS, R, G = 2, 4, 8, 6, 4, 3, 2, 2


def waves(shape, k, s, c=0.0):
    """Entries c + s·sin(k + 0.37 i), i the row-major index."""
    size = math.prod(shape)
    return (c + s * np.sin(k + 0.37 * np.arange(size))).reshape(shape)


def arrays(kinds, attention="none", gated=True, norm=False):
    """The weights of avmoe.md 8.2 by name; batch norms, which it does not print, in the same manner."""
    count = len(kinds)
    found = {
        "align_token_weight": waves((N, M), 3, 0.5),
        "align_token_bias": waves((N,), 4, 0.5),
        "align_channel_weight": waves((C, D), 5, 0.5),
        "align_channel_bias": waves((C,), 6, 0.5),
    }
    for i, (rows, columns) in enumerate(((128, 2 * C), (32, 128), (count, 32))):
        found[f"router_fc{i + 1}_weight"] = waves((rows, columns), 7 + 2 * i, 0.2)
        found[f"router_fc{i + 1}_bias"] = waves((rows,), 8 + 2 * i, 0.2)
    for e, kind in enumerate(kinds):
        k, p = 20 + 20 * e, f"{kind}{kinds[:e].count(kind)}_"
        if kind == "cross" or attention == "latent":
            found[p + "latent_tokens"] = waves((LATENTS, C), k, 1)
        if kind == "cross" or attention in ("latent", "dense"):
            found[p + "attention_gate"] = np.array(0.5)
        if kind == "uni" and attention == "temporal":
            found[p + "in_proj_weight"] = waves((3 * C, C), k + 7, 0.3)
            found[p + "in_proj_bias"] = waves((3 * C,), k + 8, 0.1)
            found[p + "out_proj_weight"] = waves((C, C), k + 9, 0.3)
            found[p + "out_proj_bias"] = waves((C,), k + 10, 0.1)
        found[p + "ln_in_weight"] = waves((C,), k + 1, 0.2, 1)
        found[p + "ln_in_bias"] = waves((C,), k + 2, 0.2)
        found[p + "down_weight"] = waves((C // R, C // G), k + 3, 0.5)
        found[p + "up_weight"] = waves((C, C // (R * G)), k + 4, 0.5)
        found[p + "ln_out_weight"] = waves((C,), k + 5, 0.2, 1)
        found[p + "ln_out_bias"] = waves((C,), k + 6, 0.2)
        if gated:
            found[p + "output_gate"] = np.array(0.8 - 0.1 * e)
        for n, width in ((1, C // R), (2, C)) if norm else ():
            found[f"{p}bn{n}_weight"] = waves((width,), k + 11 + n, 0.3, 1)
            found[f"{p}bn{n}_bias"] = waves((width,), k + 13 + n, 0.3)
            found[f"{p}bn{n}_running_mean"] = waves((width,), k + 15 + n, 0.3)
            found[f"{p}bn{n}_running_var"] = waves((width,), k + 17 + n, 0.3, 0.8)
    return found


X, OTHER = waves((B, N, C), 1, 1), waves((B, M, D), 2, 1)


def spec(kinds, attention="none", **more):
    return {
        "experts": list(kinds),
        "batch_norm": False,
        "output_gate": True,
        "groups": G,
        "uni_attention": attention,
        **more,
    }


# ------------------------------------------------------------------ a direct formulation, from the equations
def norm_by_hand(v, weight, bias):
    return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * weight + bias


def softmax(v):
    e = np.exp(v - v.max())
    return e / e.sum()


def grouped_by_hand(weight, v):
    """Output channel block j reads input channel block j."""
    rows, columns = len(weight) // G, weight.shape[1]
    blocks = [weight[j * rows : (j + 1) * rows] @ v[j * columns : (j + 1) * columns] for j in range(G)]
    return np.concatenate(blocks)


def batch_norm_by_hand(tokens, w, p, training, frames):
    """``tokens`` [B, N, K]; in training the statistics are those of one clip."""
    out = np.empty_like(tokens)
    for start in range(0, len(tokens), frames):
        clip = tokens[start : start + frames]
        for k in range(tokens.shape[2]):
            mean, var = w[p + "running_mean"][k], w[p + "running_var"][k]
            if training:
                mean, var = clip[:, :, k].mean(), clip[:, :, k].var()
            centred = (clip[:, :, k] - mean) / np.sqrt(var + 1e-5)
            out[start : start + frames, :, k] = centred * w[p + "weight"][k] + w[p + "bias"][k]
    return out


def attend_latents(x, source, latents, gate):
    """x′ = x + γ softmax_L(x Z′ᵀ) Z′ with Z′ = Z + softmax_N(Z sᵀ) s."""
    summary = np.stack([z + softmax(source @ z) @ source for z in latents])
    return np.stack([token + gate * (softmax(summary @ token) @ summary) for token in x])


def attend_frames(x, w, p, frames):
    """Four heads over the frames of a clip, for each spatial token alone, scale 1/√(C/4), no residual."""
    out, width = np.zeros_like(x), C // 4
    for start in range(0, len(x), frames):
        for n in range(x.shape[1]):
            rows = [w[p + "in_proj_weight"] @ x[start + t, n] + w[p + "in_proj_bias"] for t in range(frames)]
            for t in range(frames):
                heads = []
                for h in range(4):
                    part = slice(h * width, (h + 1) * width)
                    query = rows[t][:C][part]
                    keys = np.stack([row[C : 2 * C][part] for row in rows])
                    values = np.stack([row[2 * C :][part] for row in rows])
                    heads.append(softmax(keys @ query / math.sqrt(width)) @ values)
                out[start + t, n] = w[p + "out_proj_weight"] @ np.concatenate(heads) + w[p + "out_proj_bias"]
    return out


def attend_transposed(x, gate):
    """x′_j = x_j + γ Σ_i S_ij x_i, S = row-softmax(x xᵀ)."""
    scores = np.stack([softmax(row) for row in x @ x.T])
    return x + gate * scores.T @ x


@dataclass
class Direct:
    kinds: tuple
    attention: str = "none"
    norm: bool = False
    training: bool = False
    frames: int = B
    relu: bool = False
    gated: bool = True
    weights: dict = field(default_factory=dict)

    def __call__(self, x, other):
        w = self.weights
        aligned = np.zeros_like(x)
        for b in range(len(x)):
            mixed = w["align_token_weight"] @ other[b] + w["align_token_bias"][:, None]
            aligned[b] = mixed @ w["align_channel_weight"].T + w["align_channel_bias"]
        gates = np.zeros((len(x), len(self.kinds)))
        for b in range(len(x)):
            hidden = np.concatenate([x[b].mean(0), aligned[b].mean(0)])
            for i in (1, 2, 3):
                hidden = w[f"router_fc{i}_weight"] @ hidden + w[f"router_fc{i}_bias"]
                hidden = np.maximum(hidden, 0) if i < 3 else hidden
            gates[b] = softmax(hidden)
        experts = [self.expert(x, aligned, e, kind) for e, kind in enumerate(self.kinds)]
        mixed = sum(gates[:, e, None, None] * y for e, y in enumerate(experts))
        return aligned, experts, gates, mixed

    def expert(self, x, aligned, e, kind):
        w, p = self.weights, f"{kind}{self.kinds[:e].count(kind)}_"
        read = x
        if kind == "cross":
            read = [
                attend_latents(x[b], aligned[b], w[p + "latent_tokens"], w[p + "attention_gate"]) for b in range(len(x))
            ]
        elif self.attention == "latent":
            read = [attend_latents(x[b], x[b], w[p + "latent_tokens"], w[p + "attention_gate"]) for b in range(len(x))]
        elif self.attention == "dense":
            read = [attend_transposed(x[b], w[p + "attention_gate"]) for b in range(len(x))]
        elif self.attention == "temporal":
            read = attend_frames(x, w, p, self.frames)
        first = [[norm_by_hand(v, w[p + "ln_in_weight"], w[p + "ln_in_bias"]) for v in rows] for rows in read]
        down = np.array([[grouped_by_hand(w[p + "down_weight"], v) for v in rows] for rows in first])
        if self.norm:
            down = batch_norm_by_hand(down, w, p + "bn1_", self.training, self.frames)
        if kind == "cross" or self.relu:
            down = np.maximum(down, 0)
        up = np.array([[grouped_by_hand(w[p + "up_weight"], v) for v in rows] for rows in down])
        if self.norm:
            up = batch_norm_by_hand(up, w, p + "bn2_", self.training, self.frames)
        last = [[norm_by_hand(v, w[p + "ln_out_weight"], w[p + "ln_out_bias"]) for v in rows] for rows in up]
        return np.array(last) * (w[p + "output_gate"] if self.gated else 1.0)
