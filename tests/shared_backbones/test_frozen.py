"""A frozen tower stays as it is whatever surrounds it; a trainable one obeys."""

import pytest
import torch

from shared_backbones import create

TOWERS = ["beats", "clap", "clip_vit", "htsat", "pvt_v2", "resnet18", "resnet50", "swin_v2", "vggish"]


@pytest.mark.parametrize("name", TOWERS)
def test_frozen_tower_ignores_train_mode(name, tiny, sample):
    tower, x = tiny(name), sample(name)
    model = torch.nn.ModuleDict({"tower": tower, "head": torch.nn.Linear(2, 2)})
    before, digest = tower.encode(x), tower.weights_digest()
    model.train(True)
    assert model["head"].training
    assert not any(module.training for module in tower.modules())
    tokens, aux = tower.embed(tower.frontend(x))
    for sub in tower.subs:
        out = tower.run(sub, tokens, aux)
        tokens = tower.join(sub, tokens, out)
    assert torch.equal(tower.final(tokens), before)
    assert tower.weights_digest() == digest
    assert not any(p.requires_grad for p in tower.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "clap"])
def test_trainable_tower_obeys(name, sample):
    tower = create(name, size="tiny", pretrained=False, trainable=True)
    assert tower.trainable
    assert all(p.requires_grad for p in tower.net.parameters())
    assert tower.training
    digest = tower.weights_digest()
    tower.encode(sample(name))  # eval mode inside, so no batch-norm statistic moves
    assert tower.training
    assert tower.weights_digest() == digest
    tower.embed(tower.frontend(sample(name)))
    assert tower.weights_digest() != digest
    tower.eval()
    assert not tower.training


def test_encode_builds_no_graph(sample):
    tower = create("resnet18", size="tiny", pretrained=False, trainable=True)
    assert not tower.encode(sample("resnet18")).requires_grad


@pytest.mark.parametrize("name", TOWERS)
def test_weights_follow_the_seed_alone(name):
    torch.manual_seed(5)
    first = create(name, size="tiny", pretrained=False)
    state = torch.random.get_rng_state()
    torch.manual_seed(6)
    second = create(name, size="tiny", pretrained=False, seed=0)
    assert first.weights_digest() == second.weights_digest()
    assert first.weights_digest() != create(name, size="tiny", pretrained=False, seed=1).weights_digest()
    torch.manual_seed(5)
    assert torch.equal(torch.random.get_rng_state(), state)  # building draws nothing from the caller's generator


def test_weights_digest_sees_every_tensor(tiny):
    tower = tiny("htsat")
    digest = tower.weights_digest()
    assert digest == tiny("htsat").weights_digest()
    for name, tensor in tower.net.state_dict(keep_vars=True).items():
        with torch.no_grad():
            kept = tensor.clone()
            tensor.add_(1)
            assert tower.weights_digest() != digest, name
            tensor.copy_(kept)
    assert tower.weights_digest() == digest


def test_frontend_digests_tell_front_ends_apart():
    digests = {name: create(name, size="tiny", pretrained=False).frontend_digest for name in TOWERS}
    # Same image size, mean and standard deviation: the same features.
    assert digests["resnet18"] == digests["resnet50"] == digests["pvt_v2"] == digests["swin_v2"]
    assert len(set(digests.values())) == 6
    # Pinned: caches keyed by it must survive a release that does not touch the front end.
    assert digests["htsat"] == "e1406f98e8414cc760b78570dcb1ca215abeb54ab152d2957984eba0c6b35a8f"
