"""Runs of anchor experts on toy questions, over the tiny frozen towers."""

from functools import cache

import shared_backbones
from avcl_core.methods.finetune import Finetune
from avcl_core.models.anchor_experts import AnchorExperts, AnchorExpertsOptions
from avcl_core.testing.toy_run import ToyRun
from avcl_core.testing.toy_talks import ToyTalks
from avcl_core.training.options import TrainingOptions


@cache
def _towers():
    kinds = {"visual": "clip_vit", "audio": "beats"}
    towers = {name: shared_backbones.create(kind, size="tiny") for name, kind in kinds.items()}
    towers["language"] = shared_backbones.create("av_llama", size="tiny", pretrained=False, seed=0)
    return towers


SHORT = TrainingOptions(epochs=1, batch_size=4, lr=1e-2, evaluation_batch=3)


def talk_run(order=(), task_id="hidden", training=SHORT, experiences=2, **options):
    """A run of anchor experts on questions; ``options`` of the model."""
    return ToyRun(
        _towers, AnchorExperts, Finetune, {"talks": ToyTalks("talks", experiences)}, task_id, tuple(order),
        AnchorExpertsOptions(**{"longest": 4, **options}), None, training,
    )  # fmt: skip
