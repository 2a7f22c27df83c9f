"""The catalogue names real towers, variants and converters, and its checks tell a damaged file from an unknown one."""

import re

import pytest
import torch

from shared_backbones import catalogue, names
from shared_backbones.catalogue import Entry, convert, entry_of, list_weights, verify
from shared_backbones.convert import convert_in_process, formats, load_converter
from shared_backbones.errors import WeightsError
from shared_backbones.registry import build


@pytest.mark.parametrize("entry", list_weights(), ids=lambda e: f"{e.tower}-{e.variant}-{e.converter}-{e.file}")
def test_entries_are_consistent(entry):
    assert entry.tower in names()
    assert entry.converter in formats()
    assert load_converter(entry.converter).tower == entry.tower
    if getattr(load_converter(entry.converter), "shapes", None) is None:
        overrides = {"variant": entry.variant} if entry.tower in ("swin_v2", "clip_vit", "pvt_v2") else {}
        assert build(entry.tower, "full", overrides, device="meta").info.variant == entry.variant
    assert entry.source.startswith("https://")
    assert entry.licence
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert entry.sha256_prefix is None or re.fullmatch("[0-9a-f]{4,}", entry.sha256_prefix)


def test_every_full_tower_has_an_entry():
    assert {entry.tower for entry in list_weights()} == set(names())
    files = {entry.file for entry in list_weights()}
    assert {"HTSAT_AudioSet_Saved_1.ckpt", "630k-audioset-fusion-best.pt", "resnet18-f37072fd.pth"} <= files
    assert {"pvt_v2_b5.pth", "resnet50-19c8e357.pth", "vggish-10086976.pth", "BEATs_iter3_plus_AS2M.pt"} <= files


def test_verify(tmp_path):
    file = tmp_path / "resnet18-f37072fd.pth"
    file.write_bytes(b"not it")
    found = verify(file)
    assert (found.status, found.bytes, found.entry.tower) == ("mismatch", 6, "resnet18")
    entry = Entry("x", "resnet18", "resnet18", "torchvision_resnet", "https://x", "MIT", sha256=found.sha256)
    assert verify(file, entry).status == "match"
    unknown = tmp_path / "HTSAT_AudioSet_Saved_1.ckpt"
    unknown.write_bytes(b"x")
    assert verify(unknown).status == "unknown"
    with pytest.raises(WeightsError, match="no such file"):
        verify(tmp_path / "none.pth")


def test_entry_of():
    with pytest.raises(WeightsError, match=r"not in the catalogue; did you mean 'resnet18-f37072fd\.pth'"):
        entry_of("resnet18-f37072.pth")
    with pytest.raises(WeightsError, match=r"files of this name \(clap htsat-tiny, swin_v2 large"):
        entry_of("model.safetensors")


def test_convert_refuses_a_digest_that_is_not_the_published_one(tmp_path):
    file = tmp_path / "resnet18-f37072fd.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"published is f37072fd…, so fetch it again from https://download\.pytorch"):
        convert(file, tmp_path / "out.safetensors")


def test_convert_through_an_entry_checks_tower_and_variant(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "convert_file", convert_in_process)
    file = tmp_path / "weights.pth"
    oracle = build("resnet18", "full", {}).net.state_dict()
    torch.save(oracle | {"fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}, file)
    entry = Entry("weights.pth", "resnet18", "resnet18", "torchvision_resnet", "https://x", "MIT")
    done = convert(file, tmp_path / "out.safetensors", entry)
    assert (done.tower, done.tensors, done.dropped) == ("resnet18", len(oracle), ("fc.bias", "fc.weight"))
    assert done.source_sha256 == verify(file, entry).sha256
    other = Entry("weights.pth", "resnet18", "v2", "torchvision_resnet", "https://x", "MIT")
    with pytest.raises(WeightsError, match="holds variant 'resnet18'; the catalogue expects 'v2'"):
        convert(file, tmp_path / "other.safetensors", other)
    assert not (tmp_path / "other.safetensors").exists()
