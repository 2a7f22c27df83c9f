"""Files of experts and anchors in their authors' layout answer and route as a model that is put together by hand."""

from __future__ import annotations

import copy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cosine_similarity
from typer.testing import CliRunner

from avcl.cli_weights import weights_app
from avcl_core.errors import ConfigError, IntegrityError
from avcl_core.importing.expert_run import import_experts
from avcl_core.importing.experts import Files, expert_tensors
from avcl_core.importing.foreign import Foreign, as_foreign
from avcl_core.models.anchor_experts import AnchorExperts, AnchorExpertsOptions
from avcl_core.moe.anchors import Pooled
from avcl_core.moe.feedforward import LowRank, Whole
from avcl_core.ownership import Owners
from avcl_core.stream import Experience
from avcl_core.walk import Ctx
from shared_backbones.convert.archive import read_tensors
from shared_backbones.language import plain_walk
from shared_backbones.registry import build

NAMES = ("Come_From", "Happening", "Where")
WIDTHS = {"video": 64, "audio": 64, "text": 128}


def model_of(**options) -> AnchorExperts:
    towers = {
        "visual": build("clip_vit", "tiny", {}),
        "audio": build("beats", "tiny", {}),
        "language": build("av_llama", "tiny", {}),
    }
    task = SimpleNamespace(name="avqa_open", head=lambda spec, experience: None)
    model = AnchorExperts(towers, {"avqa_open": task}, AnchorExpertsOptions.model_validate(options))  # type: ignore[dict-item]
    for index, name in enumerate(NAMES):
        model.grow(Experience(index, name, "avqa_open", ("a",), ("b",), ("c",)))
    return model


def expert_file(seed: int) -> dict[str, torch.Tensor]:
    """An expert of four blocks, of which 0 and 2 have one, in full precision."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate_proj": (344, 128), "up_proj": (344, 128), "down_proj": (128, 344)}
    return {
        f"model.layers.{block}.mlp.{name}.weight": 0.3 * torch.randn(shape, generator=generator)
        for block in (0, 2)
        for name, shape in shapes.items()
    }


def anchor_file(seed: int) -> dict[str, torch.Tensor]:
    """Rows of patches and of sound, and one row of words."""
    generator = torch.Generator().manual_seed(100 + seed)
    rows = {"video": (9, 64), "audio": (21, 64), "text": (128,)}
    return {name: torch.randn(shape, generator=generator) + 0.2 * seed for name, shape in rows.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Files]:
    """Files whose numbers are not the order of the experiences."""
    folder, found = tmp_path_factory.mktemp("authors"), {}
    for name, number in zip(NAMES, (2, 0, 1), strict=True):
        pair = []
        for kind, tensors in (("expert", expert_file(number)), ("anchor", anchor_file(number))):
            path = folder / f"{kind}_task_{number}.pt"
            torch.save(tensors, path)
            pair.append(as_foreign(path, read_tensors(path)))
        found[name] = Files(*pair)
    return found


def test_answers_and_routes_are_those_of_a_model_put_together_by_hand(files) -> None:
    model = model_of()
    found = expert_tensors(files, Owners(model), NAMES)
    Owners(model).load(found.state)
    assert found.dropped == ()
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(2, 7, 128, generator=generator)
    there = torch.ones(2, 7, dtype=torch.bool)
    answers = []
    for name in NAMES:
        by_hand = copy.deepcopy(model.language)
        for key, tensor in files[name].expert.tensors.items():
            by_hand.net.decoder.get_parameter(key).data.copy_(tensor)
        with torch.no_grad():
            expected = by_hand.logits(plain_walk(by_hand, rows, there, None))
            answer = model.language.logits(model._walked(Ctx(slots=(name, name)), rows, there, None))
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)
        answers.append(answer)
    assert all(float((a - b).abs().max()) > 1e-2 for a, b in pairwise(answers))

    given = {"visual": "video", "audio": "audio", "text": "text"}
    samples = {name: torch.randn(5, WIDTHS[theirs], generator=generator) for name, theirs in given.items()}
    expected = torch.stack(
        [
            torch.stack(
                [
                    cosine_similarity(
                        samples[ours], files[name].anchor.tensors[theirs].reshape(-1, WIDTHS[theirs]).mean(0)[None]
                    )
                    for ours, theirs in given.items()
                ]
            ).mean(0)
            for name in NAMES
        ],
        1,
    )
    scores = model.anchors.scores(Pooled(samples))
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert model.anchors.choose(scores) == tuple(NAMES[i] for i in expected.argmax(1).tolist())
    assert model.anchors.known == NAMES


def changed(files, name: str, kind: str, change) -> dict[str, Files]:
    pair = files[name]
    foreign = getattr(pair, kind)
    tensors = dict(foreign.tensors)
    change(tensors)
    other = {"expert": pair.expert, "anchor": pair.anchor, kind: Foreign(foreign.file, foreign.sha256, tensors)}
    return {**files, name: Files(**other)}


KEY = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("expert", lambda t: t.pop(KEY), rf"expert_task_0\.pt: {KEY} is missing"),
        ("expert", lambda t: t.update({"model.layers.1.mlp.up_proj.weight": t[KEY]}), "no such key"),
        ("expert", lambda t: t.update({KEY: t[KEY].T.contiguous()}), rf"{KEY} 128×344; expected 344×128"),
        ("anchor", lambda t: t.pop("audio"), r"anchor_task_0\.pt: has none of audio for the anchor audio"),
        ("anchor", lambda t: t.update(image=t["video"]), "has video and image for the anchor visual"),
        ("anchor", lambda t: t.update(speech=t["audio"]), "speech: the published layout has audio, image, text, video"),
        ("anchor", lambda t: t.update(text=torch.ones(64)), "text is 64; expected 128 or rows of 128"),
        ("anchor", lambda t: t.update(text=torch.full((128,), torch.nan)), "not finite"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_named(files, kind, change, says) -> None:
    with pytest.raises(IntegrityError, match=says):
        expert_tensors(changed(files, "Happening", kind, change), Owners(model_of()), NAMES)


def test_experiences_are_told_by_name(files) -> None:
    owners = Owners(model_of())
    with pytest.raises(ConfigError, match="no files of Happening; the stream has"):
        expert_tensors({name: pair for name, pair in files.items() if name != "Happening"}, owners, NAMES)
    with pytest.raises(ConfigError, match="'Which' is no experience of the stream"):
        expert_tensors({**files, "Which": files["Where"]}, owners, NAMES)


def test_models_that_are_not_the_published_one_are_refused(files) -> None:
    with pytest.raises(IntegrityError, match="take the configuration of the published model"):
        expert_tensors(files, Owners(model_of(expert={"rank": 2})), NAMES)
    with pytest.raises(IntegrityError, match=r"model\.layers\.1\.mlp\.gate_proj\.weight is missing"):
        expert_tensors(files, Owners(model_of(expert={"layers": "all"})), NAMES)
    with pytest.raises(IntegrityError, match=r"choose model\.anchors\.score=mean_cosine"):
        expert_tensors(files, Owners(model_of(anchors={"score": "lda"})), NAMES)


def test_what_the_model_does_not_compare_is_left_out_and_told(files) -> None:
    model = model_of(anchors={"reads": ["text"]})
    found = expert_tensors(files, Owners(model), NAMES)
    assert found.dropped[:2] == ("anchor_task_2.pt: audio", "anchor_task_2.pt: video")
    assert {name.split(".")[3] for name in found.state if name.startswith("anchors.")} == {"text"}


def test_command_line_wants_names_and_files(tmp_path) -> None:
    def call(*arguments: str):
        CliRunner().invoke(
            weights_app, ["convert", "--from", "avqacl_moe", str(tmp_path), str(tmp_path / "run"), *arguments],
            catch_exceptions=False,
        )  # fmt: skip

    with pytest.raises(ConfigError, match="config=CONFIG is missing"):
        call("expert.Where=a.pt")
    with pytest.raises(ConfigError, match="--task"):
        call("--task", "avqa", "config=open_embedded")
    with pytest.raises(IntegrityError, match=r"a\.pt: no such file"):
        call("config=open_embedded", "expert.Where=a.pt")
    (tmp_path / "a.pt").write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        import_experts({"Where": tmp_path / "a.pt"}, {}, tmp_path / "run", tmp_path / "none.yaml")


def test_one_expert_of_the_full_size_has_the_published_number_of_parameters() -> None:
    language = build("av_llama", "full", {}, device="meta")
    mlps = [language.mlp(sub) for sub in language.subs if sub.kind == "mlp" and sub.block % 2 == 0]
    with torch.device("meta"):
        whole = [list(Whole(mlp).parameters()) for mlp in mlps]
        low = [list(LowRank(mlp, 64, 1.0).parameters()) for mlp in mlps]
    assert [sum(p.numel() for p in parameters) for parameters in whole] == [135_266_304] * 16
    assert sum(len(parameters) for parameters in whole) == 48
    assert sum(p.numel() for parameters in whole for p in parameters) == 2_164_260_864
    assert sum(p.numel() for parameters in low for p in parameters) == 724_992 * 64
