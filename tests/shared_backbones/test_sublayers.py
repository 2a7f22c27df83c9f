"""What may happen inside a sublayer: prefix rows, a swapped MLP, and refusals where there is no place."""

import pytest
import torch
import torch.nn.functional as F

from shared_backbones.windows import from_windows, to_windows, window_attention

ATTENTION = ["beats", "clap", "clip_vit", "htsat", "pvt_v2", "swin_v2"]


def subs_of(tower, kind):
    """One sublayer per block kind: with and without a shift, with and without a shrunk window."""
    return [sub for sub in tower.subs if sub.kind == kind]


def tokens_of(tower, sub, batch=2, seed=3):
    count = tower.info.class_tokens + sub.grid[0] * sub.grid[1]
    return torch.randn(batch, count, sub.width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ATTENTION)
def test_no_prefix_rows_change_nothing(name, tiny):
    tower = tiny(name)
    for sub in subs_of(tower, "attn"):
        x = tokens_of(tower, sub)
        none = torch.zeros(2, 0, sub.width)
        torch.testing.assert_close(tower.run(sub, x, {}, prefix=(none, none)), tower.run(sub, x, {}), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_prefix_rows_are_projected_and_seen_by_every_token(name, tiny):
    tower = tiny(name)
    for sub in subs_of(tower, "attn"):
        x, rows = tokens_of(tower, sub), tokens_of(tower, sub, seed=4)[:, :3]
        plain = tower.run(sub, x, {})
        changed = tower.run(sub, x, {}, prefix=(rows, rows.flip(1)))
        assert ((changed - plain).abs().amax(-1) > 1e-5).all()
        # Each sample has its own rows.
        one = tower.run(sub, x[:1], {}, prefix=(rows[:1], rows[:1].flip(1)))
        torch.testing.assert_close(changed[:1], one, rtol=1e-5, atol=1e-5)
        # Attention does not know the order of its rows.
        again = tower.run(sub, x, {}, prefix=(rows.flip(1), rows))
        torch.testing.assert_close(changed, again, rtol=1e-5, atol=1e-5)


def test_clip_prefix_equals_attention_over_the_concatenation(tiny):
    tower = tiny("clip_vit")
    sub = tower.subs[2]
    layer = tower.net.vision_model.encoder.layers[1]
    x, k, v = (tokens_of(tower, sub, seed=s) for s in (3, 4, 5))
    attn, z = layer.self_attn, F.layer_norm(x, (64,), layer.layer_norm1.weight, layer.layer_norm1.bias)
    q, keys = attn.q_proj(z) / 32**0.5, attn.k_proj(torch.cat((k, z), 1))
    values = attn.v_proj(torch.cat((v, z), 1))
    heads = []
    for h in (slice(0, 32), slice(32, 64)):
        scores = (q[..., h] @ keys[..., h].transpose(1, 2)).softmax(-1)
        heads.append(scores @ values[..., h])
    expected = attn.out_proj(torch.cat(heads, -1))
    torch.testing.assert_close(tower.run(sub, x, {}, prefix=(k, v)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["clap", "htsat", "swin_v2"])
def test_windowed_tower_prefix_equals_attention_over_the_concatenation(name, tiny):
    """In the last stage one window is the whole grid: keys from their own rows, values from theirs, each projected once."""
    tower = tiny(name)
    sub = subs_of(tower, "attn")[-1]
    block = tower.blocks[sub.block]
    x, k, v = tokens_of(tower, sub), tokens_of(tower, sub, seed=4)[:, :2], tokens_of(tower, sub, seed=5)[:, 1:3]
    if name == "swin_v2":
        attn, z = block.attn, x
        wq, wk, wv = attn.qkv.weight.chunk(3)
        q, keys = z @ wq.T + attn.q_bias, torch.cat((k, z), 1) @ wk.T
        values = torch.cat((v, z), 1) @ wv.T + attn.v_bias
        position = 16 * attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads).sigmoid()
        index, heads, extra = attn.relative_position_index, attn.num_heads, 8.0  # 16·sigmoid(0)
    else:
        attn, z = block.attention.self, block.layernorm_before(x)
        q, keys, values = attn.query(z), attn.key(torch.cat((k, z), 1)), attn.value(torch.cat((v, z), 1))
        position, index = attn.relative_position_bias_table, attn.relative_position_index
        heads, extra = attn.num_attention_heads, 0.0
    parts = []
    for h, (qh, kh, vh) in enumerate(zip(*(y.chunk(heads, -1) for y in (q, keys, values)), strict=True)):
        if name == "swin_v2":
            scale = attn.logit_scale[h].exp()
            scores = scale * F.normalize(qh, dim=-1) @ F.normalize(kh, dim=-1).transpose(1, 2)
        else:
            scores = qh @ kh.transpose(1, 2) / qh.shape[-1] ** 0.5
        bias = torch.cat((torch.full((len(index), 2), extra), position[:, h][index]), 1)
        parts.append((scores + bias).softmax(-1) @ vh)
    out = torch.cat(parts, -1)
    expected = block.norm1(attn.proj(out)) if name == "swin_v2" else block.attention.output.dense(out)
    torch.testing.assert_close(tower.run(sub, x, {}, prefix=(k, v)), expected, rtol=1e-4, atol=1e-5)


def test_window_prefix_equals_attention_over_the_concatenation():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 9, 8, generator=g) for _ in range(3))
    rows = torch.randn(2, 5, 8, generator=g), torch.randn(2, 5, 8, generator=g)
    bias, mask = torch.randn(2, 9, 9, generator=g), torch.randn(4, 9, 9, generator=g)
    found = window_attention(q, k, v, 2, bias, mask, rows, prefix_bias=0.7)
    for b in range(2):
        for w in range(4):
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                keys, values = torch.cat((rows[0][b], k[b, w])), torch.cat((rows[1][b], v[b, w]))
                scores = q[b, w][:, part] @ keys[:, part].T / 2
                scores[:, :5] += 0.7
                scores[:, 5:] += bias[h] + mask[w]
                expected = scores.softmax(-1) @ values[:, part]
                torch.testing.assert_close(found[b, w][:, part], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("window", "shift"), [(2, 0), (4, 0), (4, 2), (2, 1), (8, 0)])
def test_windows_are_undone(window, shift):
    x = torch.randn(2, 64, 3)
    windows = to_windows(x, (8, 8), window, shift)
    assert windows.shape == (2, (8 // window) ** 2, window**2, 3)
    assert torch.equal(from_windows(windows, (8, 8), window, shift), x)
    if not shift:
        first = x.view(2, 8, 8, 3)[:, :window, :window].reshape(2, -1, 3)
        assert torch.equal(windows[:, 0], first)


@pytest.mark.parametrize("name", ATTENTION)
def test_swapping_in_the_own_mlp_changes_nothing(name, tiny):
    tower = tiny(name)
    for sub in subs_of(tower, "mlp"):
        x = tokens_of(tower, sub)
        plain = tower.run(sub, x, {})
        assert torch.equal(tower.run(sub, x, {}, swap=tower.mlp(sub)), plain)
        assert not torch.allclose(tower.run(sub, x, {}, swap=lambda z: torch.zeros_like(z)), plain)


def test_swap_sits_between_the_norms(tiny):
    seen = []

    def swap(z):
        seen.append(z)
        return 3 * z

    for name in ATTENTION:
        tower = tiny(name)
        sub = subs_of(tower, "mlp")[0]
        x = tokens_of(tower, sub)
        out = tower.run(sub, x, {}, swap=swap)
        if name == "beats":  # the norm comes with the sum
            torch.testing.assert_close(seen[-1], x)
            torch.testing.assert_close(out, 3 * x)
        elif name == "swin_v2":  # the norm comes behind
            torch.testing.assert_close(seen[-1], x)
            torch.testing.assert_close(out, tower.blocks[sub.block].norm2(3 * x))
        else:  # the norm comes in front
            assert not torch.allclose(seen[-1], x)
            torch.testing.assert_close(out, 3 * seen[-1])


def test_sublayers_without_a_place_refuse(tiny, sample):
    swin = tiny("swin_v2")
    attn, mlp = swin.subs[:2]
    merge = next(sub for sub in swin.subs if sub.kind == "merge")
    rows = torch.zeros(1, 1, 16)
    for sub in (mlp, merge):
        with pytest.raises(ValueError, match="a prefix acts on attention"):
            swin.run(sub, torch.zeros(1, 256, 16), {}, prefix=(rows, rows))
    with pytest.raises(ValueError, match="a swap replaces an MLP"):
        swin.run(attn, torch.zeros(1, 256, 16), {}, swap=lambda z: z)
    resnet = tiny("resnet18")
    with pytest.raises(ValueError, match="stage sublayer"):
        resnet.run(resnet.subs[0], torch.zeros(1, 256, 8), {"grid": (16, 16)}, swap=lambda z: z)
    with pytest.raises(TypeError, match="no MLP"):
        resnet.mlp(resnet.subs[0])


@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_reach_prefix_and_tokens_but_no_frozen_weight(name, tiny):
    tower = tiny(name)
    sub = tower.subs[0]
    x = tokens_of(tower, sub).requires_grad_()
    k, v = (torch.randn(2, 3, sub.width, requires_grad=True) for _ in range(2))
    tower.run(sub, x, {}, prefix=(k, v)).square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (x, k, v))
    assert all(p.grad is None for p in tower.parameters())
