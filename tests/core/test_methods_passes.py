"""What the methods against forgetting share: distances by kind, passes in eval mode with gradients, and what is still to learn."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from avcl_core.methods.ahead import placed, still_learning
from avcl_core.methods.base import Method
from avcl_core.methods.distances import distance
from avcl_core.methods.quiet import quiet

sys.path.insert(0, str(Path(__file__).parent))
from method_toys import Bench, PointOptions, points

SHAPES = {"classes": (3, 5), "tokens": (3, 2, 5), "labels": (3, 4), "mask": (3, 2, 4, 4), "value": (3,)}


def pair(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPES[kind], generator=generator) * 2 for _ in range(2)]


# ------------------------------------------------------------------ distances
@pytest.mark.parametrize("kind", SHAPES)
def test_equal_outputs_have_no_distance_and_no_gradient(kind):
    student, _ = pair(kind)
    student.requires_grad_(True)
    found = distance(kind, student, student.detach().clone(), temperature=2.0)
    found.sum().backward()
    assert found.shape == (3,)
    assert float(found.abs().max()) < 1e-6
    assert float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("kind", SHAPES)
def test_other_outputs_are_apart_and_only_the_student_follows(kind):
    student, teacher = (value.requires_grad_(True) for value in pair(kind))
    found = distance(kind, student, teacher)
    assert float(found.min()) > 0
    before = found.sum()
    before.backward()
    assert teacher.grad is None
    after = distance(kind, student.detach() - 0.05 * student.grad, teacher).sum()
    assert after < before


def test_each_kind_has_its_formula():
    student, teacher = pair("classes")
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    assert torch.allclose(distance("classes", student, teacher, 2.0), 4 * (p * (p / q).log()).sum(-1), atol=1e-5)
    student, teacher = pair("tokens")
    p, q = teacher.softmax(-1), student.softmax(-1)
    assert torch.allclose(distance("tokens", student, teacher), (p * (p / q).log()).sum(-1).mean(1), atol=1e-5)
    for kind in ("labels", "mask"):
        student, teacher = pair(kind)
        p, q = teacher.sigmoid(), student.sigmoid()
        each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        assert torch.allclose(distance(kind, student, teacher, 7.0), each.flatten(1).mean(1), atol=1e-5)
    student, teacher = pair("value")
    assert torch.allclose(distance("value", student, teacher), (student - teacher) ** 2)


def test_distances_are_computed_in_full_precision():
    student, teacher = (value.bfloat16() for value in pair("classes"))
    assert distance("classes", student, teacher).dtype == torch.float32


@pytest.mark.parametrize("kind", ["classes", "labels", "tokens"])
def test_classes_that_were_added_since_have_no_teacher(kind):
    student, teacher = pair(kind)
    wide = functional.pad(student, (0, 2), value=9.0)
    assert torch.equal(distance(kind, wide, teacher), distance(kind, student, teacher))


def test_outputs_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"kind mask cannot be compared: \(3, 2, 4, 5\) now, \(3, 2, 4, 4\)"):
        distance("mask", torch.zeros(3, 2, 4, 5), torch.zeros(3, 2, 4, 4))
    with pytest.raises(ValueError, match="kind classes"):
        distance("classes", torch.zeros(3, 4), torch.zeros(3, 5))


# ------------------------------------------------------------------ quiet passes
def test_a_quiet_pass_is_that_of_eval_mode_with_recurrent_layers_in_train_mode():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(3, 4, num_layers=2, dropout=0.5, batch_first=True)
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(self.norm(self.rnn(x)[0][:, -1]))

    net, x = Net().train(), torch.randn(5, 6, 3)
    net.drop.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    expected = net.eval()(x)
    for name, module in net.named_modules():
        module.training = modes[name]
    with quiet(net):
        found = net(x)
        assert net.rnn.training  # cuDNN refuses a backward pass otherwise
        assert not net.norm.training
        found.sum().backward()
    assert torch.equal(found, expected)
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert net.rnn.dropout == 0.5


# ------------------------------------------------------------------ what is still to learn
def test_what_experiences_to_come_make_active():
    bench = Bench(points(Method, model_options=PointOptions(copies=True), classes=2, labels=1))
    method = bench.method
    after_first = still_learning(method, ["classes0"])
    assert {"shared", "shared:part", "task:classes1", "head:classes", "head:labels"} <= set(after_first)
    assert "task:classes0" not in after_first
    after_second = still_learning(method, ["classes0", "classes1"])
    assert "head:classes" not in after_second
    assert "head:labels" in after_second
    assert still_learning(method, ["classes0", "classes1", "labels0"]) == ()
    assert still_learning(method, ["elsewhere"]) == ("*",)


def test_a_restored_state_is_put_where_the_model_is():
    model = nn.Linear(2, 2, device="meta")
    state = {"a": [{"b": torch.zeros(2)}], "n": 3, "s": "text", "none": None}
    found = placed(state, model)
    assert found["a"][0]["b"].device.type == "meta"
    assert (found["n"], found["s"], found["none"]) == (3, "text", None)
