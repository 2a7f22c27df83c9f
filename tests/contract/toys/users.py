"""The hardest users of the core by name, each a whole toy run."""

from __future__ import annotations

from toys.anchors import AnchorExperts, AnchorMethod
from toys.cross_experts import CrossExperts, NoisyExperts
from toys.hypernetwork import GeneratedHeads, PrototypeReplay
from toys.language import Language
from toys.prompts import Prompts
from toys.regression import FRAMES, KeyFrameReplay, Regressor

from avcl_core.methods.derpp import DarkReplay, DarkReplayOptions
from avcl_core.methods.er import ExperienceReplay
from avcl_core.methods.ewc import EWC, EWCOptions
from avcl_core.methods.finetune import Finetune
from avcl_core.methods.joint import Joint
from avcl_core.methods.lwf import LwF
from avcl_core.methods.sharing import SharingOptions
from avcl_core.methods.single import Single
from avcl_core.models.residual_adapters import ResidualAdapters
from avcl_core.testing.toy_data import Shape
from avcl_core.testing.toy_run import ToyRun
from avcl_core.testing.toy_tasks import toy_task
from avcl_core.testing.toy_towers import clip, htsat, resnet, toy_towers


def tasks(**kinds):
    """Toy tasks by kind with a number of experiences."""
    return {kind: toy_task(kind, count) for kind, count in kinds.items()}


def pair():
    """CLIP and HTS-AT."""
    return {"visual": clip(), "audio": htsat()}


def seen():
    """A ResNet alone."""
    return {"visual": resnet()}


def spoken():
    """A ResNet that feeds a language model."""
    return {"visual": resnet(), "text": Language()}


DARK = DarkReplayOptions(memory=6, replay_batch=3)
ONLINE = EWCOptions(decay=0.9, samples=4)
SNAPSHOT, L2SP = SharingOptions(shared="snapshot"), SharingOptions(shared="l2sp")
EMA = SharingOptions(shared="ema", ema_decay=0.9)
clips = {"value": toy_task("value", 3, shape=Shape(frames=FRAMES))}

USERS = {
    "cross experts": ToyRun(toy_towers, CrossExperts, Finetune, tasks(classes=1, labels=1)),
    "cross experts, masks": ToyRun(toy_towers, CrossExperts, Finetune, tasks(mask=1, classes=1)),
    "prompts": ToyRun(pair, Prompts, Finetune, tasks(classes=2, labels=1), order=("classes0", "labels0", "classes1")),
    "anchor experts": ToyRun(spoken, AnchorExperts, AnchorMethod, tasks(tokens=3), task_id="hidden"),
    "regression": ToyRun(seen, Regressor, KeyFrameReplay, clips),
    "generated heads": ToyRun(seen, GeneratedHeads, PrototypeReplay, tasks(classes=3)),
    "ewc": ToyRun(pair, ResidualAdapters, EWC, tasks(value=1, tokens=1, labels=1)),
    "ewc, noisy experts": ToyRun(toy_towers, NoisyExperts, EWC, tasks(mask=1, classes=1), method_options=ONLINE),
    "lwf": ToyRun(pair, ResidualAdapters, LwF, tasks(classes=1, value=1, tokens=2)),
    "lwf, prompts": ToyRun(pair, Prompts, LwF, tasks(mask=1, labels=1)),
    "der++": ToyRun(pair, ResidualAdapters, DarkReplay, tasks(labels=1, value=1, tokens=1), method_options=DARK),
    "der++, prompts": ToyRun(pair, Prompts, DarkReplay, tasks(mask=1, classes=1), method_options=DARK),
    "der++, trained tower": ToyRun(seen, Regressor, DarkReplay, tasks(mask=1, value=1, classes=1), method_options=DARK),
    "snapshot": ToyRun(pair, Prompts, Finetune, tasks(classes=2, labels=1), method_options=SNAPSHOT),
    "ema": ToyRun(seen, Regressor, Finetune, tasks(mask=1, classes=1), method_options=EMA),
    "l2sp": ToyRun(pair, ResidualAdapters, Finetune, tasks(labels=1, tokens=1), method_options=L2SP),
    "er": ToyRun(pair, ResidualAdapters, ExperienceReplay, tasks(labels=1, value=1, tokens=1)),
    "joint": ToyRun(pair, ResidualAdapters, Joint, tasks(classes=1, mask=1)),
    "single": ToyRun(seen, Regressor, Single, tasks(classes=1, value=1)),
}
