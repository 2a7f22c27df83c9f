"""Questions with answers in words, over tiny frozen towers: what anchor experts are tried on."""

from functools import cache

import shared_backbones
from avcl_core.methods.finetune import Finetune
from avcl_core.models.anchor_experts import AnchorExperts, AnchorExpertsOptions
from avcl_core.seeding import derive
from avcl_core.stream import Experience
from avcl_core.testing.toy_data import ToyDataset, latent
from avcl_core.testing.toy_run import ToyRun
from avcl_core.testing.toy_tasks import ToyTask
from avcl_core.texts import text_array, text_of
from avcl_core.training.options import TrainingOptions

ANSWERS = ("cat", "a dog", "two", "no")
FORMS = ("What is it?", "How many are there?", "Where, please, is it to be found?")
"""Question of each experience."""


class TalkData(ToyDataset):
    """Toy samples with a question and an answer as texts."""

    def inputs(self, key, rng):
        form = FORMS[int(key.split("-")[0][-1])]
        return {**super().inputs(key, None), "question": text_array(f"<video>\n<audio>\n{form}", 80)}


class Talks(ToyTask):
    """Answers in words; an experience for each form of question."""

    modalities = ("visual", "audio", "language")
    needs = ("question",)
    fields = {"answer": "tokens"}  # noqa: RUF012

    def dataset(self, split):
        return TalkData(self.shape, self.target, False)

    def target(self, key):
        return {"language": text_array(ANSWERS[(latent(key) + derive("answer", key.split("-")[0])) % 4], 8)}

    def head(self, spec, experience):
        return None

    def nll(self, outputs, targets):
        from torch.nn import functional

        logits = outputs["answer"].transpose(1, 2)
        return functional.cross_entropy(logits, targets["language"], ignore_index=-100, reduction="none").sum(1)

    def units(self, targets):
        return int((targets["language"] != -100).sum())

    def decode(self, outputs):
        return {"text": outputs["text"]}

    def score(self, predictions, targets):
        right = [text_of(predictions[key]["text"]) == text_of(targets[key]["language"]) for key in targets]
        return {"score": 100 * sum(right) / len(right)}

    def controls(self, train, test):
        constant = {"text": train[min(train)]["language"]}
        return {"constant": self.score(dict.fromkeys(test, constant), test)}


@cache
def _towers():
    towers = {
        name: shared_backbones.create(kind, size="tiny") for name, kind in (("visual", "clip_vit"), ("audio", "beats"))
    }
    towers["language"] = shared_backbones.create("av_llama", size="tiny", pretrained=False, seed=0)
    return towers


SHORT = TrainingOptions(epochs=1, batch_size=4, lr=1e-2, evaluation_batch=3)


def talk_run(order=(), task_id="hidden", training=SHORT, experiences=2, **options):
    """A run of anchor experts on questions; ``options`` of the model."""
    options = {"longest": 4, **options}
    return ToyRun(
        _towers, AnchorExperts, Finetune, {"talks": Talks("talks", experiences)}, task_id, tuple(order),
        AnchorExpertsOptions(**options), None, training,
    )  # fmt: skip


def experience(run: ToyRun, name: str) -> Experience:
    return run.stream.experience(name)
