"""Reading foreign files runs nothing that is in them, and says what is wrong with those that hold no tensors."""

import collections
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from shared_backbones.convert import convert_file
from shared_backbones.convert.archive import read_tensors
from shared_backbones.errors import WeightsError


class Touch:
    """Pickles as a call of a function that leaves a file behind."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(marker: Path) -> dict:
    return {
        "state_dict": {"conv1.weight": torch.ones(2, 3)},
        "system": Touch(os.system, f"touch {marker}"),
        "mkdir": Touch(os.mkdir, str(marker)),
        "exec": Touch(exec, f"open({str(marker)!r}, 'w')"),
        "eval": Touch(eval, f"open({str(marker)!r}, 'w')"),
        "getattr": Touch(getattr, Path(marker), "touch"),
        "partial": Touch(__import__("functools").partial, os.mkdir, str(marker)),
        "list": [Touch(os.mkdir, str(marker)), {1: Touch(os.mkdir, str(marker))}],
    }


def test_hostile_pickles_execute_nothing(tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "file.ckpt"
    torch.save(hostile(marker), file)
    tensors = read_tensors(file)
    assert list(tensors) == ["conv1.weight"]
    assert torch.equal(tensors["conv1.weight"], torch.ones(2, 3))
    assert not marker.exists()
    # The marker works: an ordinary load leaves it.
    torch.save({"mkdir": Touch(os.mkdir, str(marker))}, file)
    torch.load(file, weights_only=False)
    assert marker.exists()


def test_hostile_legacy_file_executes_nothing(tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "file.pth"
    torch.save(hostile(marker), file, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"file\.pth: neither safetensors nor a torch file of tensors"):
        read_tensors(file)
    file.write_bytes(pickle.dumps(Touch(os.mkdir, str(marker))))
    with pytest.raises(WeightsError, match="neither safetensors"):
        read_tensors(file)
    assert not marker.exists()


def test_hostile_file_through_the_whole_conversion(tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "file.ckpt"
    torch.save(hostile(marker), file)
    with pytest.raises(WeightsError, match=r"1 tensors .* look like none of the known layouts"):
        convert_file(file, tmp_path / "out.safetensors")
    assert not marker.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_all_kinds_come_out_as_they_are(tmp_path, legacy):
    base = torch.arange(24.0)
    table = collections.OrderedDict(
        matrix=base.view(4, 6),
        transposed=base.view(4, 6).t(),
        part=base[5:9],
        expanded=torch.tensor([2.0]).expand(3, 2),
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 3),
        half=torch.tensor([1.0, 2.0]).half(),
        brain=torch.tensor([1.0, 2.0]).bfloat16(),
        long=torch.tensor([1, 2]),
        flag=torch.tensor([True, False]),
        byte=torch.tensor([1, 255], dtype=torch.uint8),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    torch.save(table, tmp_path / "file.pth", _use_new_zipfile_serialization=not legacy)
    found = read_tensors(tmp_path / "file.pth")
    assert list(found) == list(table)
    for name, tensor in table.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name
        assert not found[name].requires_grad


def test_torchscript_archive(tmp_path):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 2, 1)
            self.register_buffer("size", torch.tensor(224))
            self.layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))

        def forward(self, x):
            return self.conv(x)

    module = Block().half()
    torch.jit.save(torch.jit.script(module), tmp_path / "file.pt")
    found = read_tensors(tmp_path / "file.pt")
    assert set(found) == set(module.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


def test_nests(tmp_path):
    for content in (
        {"state_dict": {"a": torch.ones(1)}, "model": {"b": torch.ones(1)}},
        {"a": torch.ones(1), "epoch": 3},
    ):
        torch.save(content, tmp_path / "file.pt")
        assert list(read_tensors(tmp_path / "file.pt")) == ["a"]
    torch.save({"model": {"b": torch.ones(1), "c": "text"}, "optimizer": {}}, tmp_path / "file.pt")
    assert list(read_tensors(tmp_path / "file.pt")) == ["b"]


def test_broken_files(tmp_path):
    file = tmp_path / "file.pt"
    with pytest.raises(WeightsError, match="no such file"):
        read_tensors(file)
    file.write_text("<html>quota exceeded</html>")
    with pytest.raises(WeightsError, match="neither safetensors nor a torch file"):
        read_tensors(file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(WeightsError, match="no named tensors inside"):
        read_tensors(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")
    with pytest.raises(WeightsError, match=r"0 data\.pkl"):
        read_tensors(file)
    torch.save({"a": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"file\.pt: "):
        read_tensors(file)


def test_tensors_beyond_their_storage_are_refused(tmp_path):
    """A rebuilt tensor must lie inside its storage, or reading it would read foreign memory."""
    torch.save({"a": torch.ones(4)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as source, zipfile.ZipFile(tmp_path / "bad.pt", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                # the size tuple (4,) becomes (200,)
                assert data.count(b"K\x04\x85") == 1
                data = data.replace(b"K\x04\x85", b"K\xc8\x85")
            target.writestr(name, data)
    with pytest.raises(WeightsError, match=r"bad\.pt: damaged torch file"):
        read_tensors(tmp_path / "bad.pt")
