"""The language model out of a folder in its users' layout: dense, or of one or all of its experts; in the folder's type; strictly."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shared_backbones import create
from shared_backbones.convert import convert_file, convert_in_process
from shared_backbones.convert.streaming import mean
from shared_backbones.errors import TowerError, WeightsError
from shared_backbones.registry import build
from shared_backbones.towers import av_llama

# Decoder of four blocks, so that two have experts; Q-Former of two.
SMALL = ((16, 4, 2, 24, 40, 64), (8, 12), (12, 2, 2, 20, 3))
CONFIG = {
    "model_type": "llava", "hidden_size": 16, "num_attention_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 64, "hidden_act": "silu", "moe": None, "mm_projector_type": "mlp2x_gelu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(av_llama, "FULL", SMALL)


@pytest.fixture(scope="module")
def tensors():
    """A dense checkpoint under the authors' names, written out by hand, in half precision."""
    generator = torch.Generator().manual_seed(0)
    width, hidden, words, q = 16, 24, 40, 12
    shapes = {
        "lm_head.weight": (words, width),
        "model.embed_tokens.weight": (words, width),
        "model.norm.weight": (width,),
    }
    for i in range(4):
        p = f"model.layers.{i}."
        shapes |= {f"{p}self_attn.{n}_proj.weight": (width, width) for n in "qkvo"}
        shapes |= {f"{p}mlp.{n}_proj.weight": (hidden, width) for n in ("gate", "up")}
        shapes |= {f"{p}mlp.down_proj.weight": (width, hidden)}
        shapes |= {f"{p}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    for name, inside in (("0", 8), ("2", width)):
        shapes |= {f"model.mm_projector.{name}.weight": (width, inside), f"model.mm_projector.{name}.bias": (width,)}
    a = "model.mm_audio_aligner."
    shapes |= {f"{a}query_tokens": (1, 3, q), f"{a}projector.weight": (width, q), f"{a}projector.bias": (width,)}
    a += "qformer.qformer."
    shapes |= {f"{a}layernorm.weight": (q,), f"{a}layernorm.bias": (q,)}
    for i in range(2):
        p = f"{a}encoder.layer.{i}."
        for kind in ("attention", "crossattention")[: 2 - i]:
            for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
                shapes |= {f"{p}{kind}.{name}.weight": (q, q), f"{p}{kind}.{name}.bias": (q,)}
            shapes |= {f"{p}{kind}.output.LayerNorm.{n}": (q,) for n in ("weight", "bias")}
        shapes |= {f"{p}intermediate_query.dense.weight": (20, q), f"{p}intermediate_query.dense.bias": (20,)}
        shapes |= {f"{p}output_query.dense.weight": (q, 20)}
        shapes |= {f"{p}output_query.{n}": (q,) for n in ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def experts(tensors):
    """The same with four experts and a gate in the even blocks."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "mlp" not in parts or int(parts[2]) % 2:
            found[name] = tensor
            continue
        for k in range(4):
            key = ".".join([*parts[:4], "experts", str(k), *parts[4:]])
            found[key] = torch.randn(tensor.shape, generator=generator).bfloat16()
        found[".".join([*parts[:4], "gate.weight"])] = torch.zeros(4, 16).bfloat16()
    return found


MOE = {"moe": {"num_experts": 4, "num_experts_per_tok": 2}}


def written(path, tensors, config=None, kind="bin", count=3):
    """A folder as users have it: a config, shards and their index."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    names, table = list(tensors), {}
    for i in range(count):
        part = {name: tensors[name] for name in names[i::count]}
        stem = "pytorch_model" if kind == "bin" else "model"
        shard = f"{stem}-{i + 1:05d}-of-{count:05d}.{kind}"
        torch.save(part, path / shard) if kind == "bin" else save_file(part, path / shard)
        table |= dict.fromkeys(part, shard)
    index = "pytorch_model.bin.index.json" if kind == "bin" else "model.safetensors.index.json"
    (path / index).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return path


def metadata(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("moe", [None, False])
def test_a_dense_checkpoint_is_taken_as_it_is(tmp_path, tensors, kind, moe):
    extra = {
        "model.vision_tower.vision_tower.x": torch.ones(2),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    folder = written(tmp_path / "base", tensors | extra, {"moe": moe}, kind)
    done = convert_in_process(folder, tmp_path / "out.safetensors")
    assert (done.tower, done.variant, done.converter) == ("av_llama", "uni_moe_audio", "uni_moe_audio")
    assert (done.dropped, done.record) == (tuple(sorted(extra)), {"ffn": "dense"})
    found = load_file(done.file)
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    for ours, theirs in (
        ("decoder.lm_head.weight", "lm_head.weight"),
        ("decoder.model.layers.2.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight"),
        ("visual.leave.bias", "model.mm_projector.2.bias"),
        ("audio.query_tokens", "model.mm_audio_aligner.query_tokens"),
        ("audio.projector.weight", "model.mm_audio_aligner.projector.weight"),
        (
            "audio.qformer.encoder.layer.0.crossattention.output.LayerNorm.bias",
            "model.mm_audio_aligner.qformer.qformer.encoder.layer.0.crossattention.output.LayerNorm.bias",
        ),
    ):
        assert torch.equal(found[ours], tensors[theirs])
    said = metadata(done.file)
    assert (said["ffn"], said["source"], said["source_sha256"]) == ("dense", "base", done.source_sha256)
    tower = create("av_llama", checkpoint=done.file)
    assert torch.equal(tower.net.visual.enter.weight, tensors["model.mm_projector.0.weight"].float())
    with pytest.raises(TowerError, match="has no experts to choose from"):
        convert_in_process(folder, tmp_path / "other.safetensors", options={"ffn": "mean"})


@pytest.mark.parametrize("ffn", ["expert:2", "mean"])
def test_experts_become_one_as_chosen(tmp_path, experts, ffn):
    folder = written(tmp_path / "moe", experts, MOE)
    done = convert_in_process(folder, tmp_path / "out.safetensors", options={"ffn": ffn})
    found = load_file(done.file)
    for block in (0, 2):
        for name in ("gate_proj", "up_proj", "down_proj"):
            four = [experts[f"model.layers.{block}.mlp.experts.{k}.{name}.weight"] for k in range(4)]
            wanted = four[2] if ffn == "expert:2" else (sum(t.double() for t in four) / 4).bfloat16()
            assert torch.equal(found[f"decoder.model.layers.{block}.mlp.{name}.weight"], wanted)
    odd = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(found[f"decoder.{odd}"], experts[odd])
    assert metadata(done.file)["ffn"] == ffn
    assert "model.layers.2.mlp.gate.weight" in done.dropped
    assert len(done.dropped) == 2 + (2 * 3 * 3 if ffn == "expert:2" else 0)


def test_a_mean_is_rounded_once():
    one = torch.tensor([1.0], dtype=torch.bfloat16)
    assert mean([one, one, one, one * 1.0078125]).item() == 1.0
    assert mean([torch.tensor([60000.0]).half()] * 4).item() == 60000.0


def test_what_is_no_choice_is_refused(tmp_path, experts):
    folder, out = written(tmp_path / "moe", experts, MOE), tmp_path / "out.safetensors"
    with pytest.raises(TowerError, match="is not published: give ffn=expert:0 to ffn=expert:3, or ffn=mean"):
        convert_in_process(folder, out)
    with pytest.raises(TowerError, match="ffn=expert:4: expected expert:0 to expert:3, or mean"):
        convert_in_process(folder, out, options={"ffn": "expert:4"})
    with pytest.raises(TowerError, match="option 'fnn' of converter uni_moe_audio; did you mean 'ffn'"):
        convert_in_process(folder, out, options={"fnn": "mean"})
    with pytest.raises(TowerError, match="one file, whose converters take no options"):
        convert_in_process(folder / "config.json", out, options={"ffn": "mean"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(
        WeightsError, match=r"config says dense: missing 6 keys: .*unknown 26 keys: model\.layers\.0\.mlp\.experts"
    ):
        convert_in_process(folder, out)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), r"missing 1 keys: model\.norm\.weight"),
        (lambda t: t.update({"model.mm_audio_aligner.Qformer.x": torch.ones(1)}), r"unknown 1 keys: model\.mm_audio_aligner\.Q"),
        (lambda t: t.update({"lm_head.weight": torch.ones(3, 16)}), r"wrong shapes: lm_head\.weight \(3, 16\) instead of \(40, 16\)"),
        (lambda t: t.update({"model.norm.weight": torch.full((16,), torch.nan)}), r"decoder\.model\.norm\.weight: values that are not finite"),
        (lambda t: t.update({"model.norm.weight": torch.ones(16).long()}), r"values of type torch\.int64"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, change, says):
    changed = dict(tensors)
    change(changed)
    with pytest.raises(WeightsError, match=says):
        convert_in_process(written(tmp_path / "base", changed), tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rms_norm_eps": None}, "no rms_norm_eps, which no tensor tells; .* state rms_norm_eps=1e-05"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06 instead of 1e-05"),
        ({"rope_theta": 5e5}, "rope_theta 500000.0 instead of 10000.0"),
        ({"max_position_embeddings": 2048}, "max_position_embeddings 2048 instead of 64"),
        ({"num_attention_heads": 4}, "num_attention_heads 4 instead of 2"),
        ({"cross_attention_frequency": 1}, "cross_attention_frequency 1 instead of 2"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
    ],
)
def test_a_config_that_is_not_the_towers_is_refused(tmp_path, tensors, config, says):
    with pytest.raises(WeightsError, match=says):
        convert_in_process(written(tmp_path / "base", tensors, config, count=1), tmp_path / "out.safetensors")


def test_what_a_config_lacks_can_be_stated_and_is_recorded(tmp_path, tensors):
    folder, out = written(tmp_path / "base", tensors, {"rope_theta": None}, count=1), tmp_path / "out.safetensors"
    done = convert_in_process(folder, out, options={"rope_theta": "10000"})
    assert metadata(done.file)["rope_theta"] == "10000"
    with pytest.raises(WeightsError, match="rope_theta '500' instead of 10000"):
        convert_in_process(folder, out, options={"rope_theta": "500"})
    with pytest.raises(WeightsError, match="rms_norm_eps 1e-05, so rms_norm_eps=1e-6 is not yours to state"):
        convert_in_process(folder, out, options={"rope_theta": "10000", "rms_norm_eps": "1e-6"})


def test_shards_are_what_the_index_says(tmp_path, tensors):
    folder, out = written(tmp_path / "base", tensors), tmp_path / "out.safetensors"
    second = folder / "pytorch_model-00002-of-00003.bin"
    part = torch.load(second)
    torch.save(part | {"more": torch.ones(1)}, second)
    with pytest.raises(
        WeightsError, match=r"00002-of-00003.bin: has more too, unlike pytorch_model.bin.index.json says"
    ):
        convert_in_process(folder, out)
    second.write_bytes(b"no file of torch")
    with pytest.raises(WeightsError, match=r"00002-of-00003.bin: no torch file"):
        convert_in_process(folder, out)
    second.unlink()
    with pytest.raises(WeightsError, match=r"1 of 3 shards are missing: pytorch_model-00002-of-00003.bin"):
        convert_in_process(folder, out)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config.json: no such file"):
        convert_in_process(folder, out)
    with pytest.raises(WeightsError, match="a folder; convert it once with `avcl weights convert"):
        create("av_llama", checkpoint=folder)


def test_types_of_a_file_are_kept_and_lie_where_others_look_for_them(tmp_path, tensors):
    mixed = {name: tensor.float() if "mm_" in name else tensor.half() for name, tensor in tensors.items()}
    done = convert_in_process(written(tmp_path / "base", mixed, count=1), tmp_path / "out.safetensors")
    for name, tensor in load_file(done.file).items():
        assert tensor.dtype == (torch.float16 if name.startswith("decoder.") else torch.float32)
        assert tensor.data_ptr() % tensor.dtype.itemsize == 0


def test_the_process_passes_options_on_and_says_what_is_wrong(tmp_path, experts):
    folder = written(tmp_path / "moe", experts, MOE)
    with pytest.raises(TowerError, match="ffn=best: expected expert:0"):
        convert_file(folder, tmp_path / "out.safetensors", options={"ffn": "best", "max_position_embeddings": "4096"})


def test_the_full_size_has_the_published_number_of_tensors(monkeypatch):
    monkeypatch.undo()
    from shared_backbones.convert.uni_moe_audio import theirs

    net = build("av_llama", "full", {}, device="meta").net
    keys = [theirs(name) for name in net.state_dict()]
    assert len(set(keys)) == len(keys)
    even = [k for k in keys if k.startswith("model.layers.") and ".mlp." in k and int(k.split(".")[2]) % 2 == 0]
    assert len(even) == 48
