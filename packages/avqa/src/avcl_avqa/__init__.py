"""AVQA: audio-visual question answering on MUSIC-AVQA as a task package, with its grounding generation stage."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from avcl_core.config.options import Options
from avcl_core.plugins import TaskPackage, late
from avcl_core.world.writer import WorldSize


class ReleaseOptions(Options):
    """Options of the grounding stage.

    Attributes:
        annotations: which release of the question files; where only the other is there, it is used and the report says so.
    """

    annotations: Literal["updated", "original"] = "updated"


class AnswerOptions(ReleaseOptions):
    """Options of the task: also which head answers.

    Attributes:
        head: ``grounding``, where each frame is one vector, grounded in the sound of its second, and a match of frame and sound is
            learnt beside the answer; or ``patches``, where the question reads every token of all frames and seconds.
    """

    head: Literal["grounding", "patches"] = "grounding"


class SourceOptions(Options):
    """Options of reading the published layout.

    Attributes:
        audio_windows: which ten seconds of a raw video's sound are taken: ``uniform``, those of its ten frames, or its ``head``.
    """

    audio_windows: Literal["uniform", "head"] = "uniform"


plugin = TaskPackage(
    name="avqa",
    title="Audio-visual question answering (MUSIC-AVQA): one question about a music video, one answer of a closed list",
    options=AnswerOptions,
    build=late("avcl_avqa.task:build"),
    layout=late("avcl_avqa.layout:layout"),
    compose=late("avcl_avqa.world:compose"),
    world_size=WorldSize(train=240, val=48, test=80),
    source=SourceOptions,
    published={"avqa": late("avcl_avqa.authors:answers")},
)

ground_plugin = replace(
    plugin,
    name="avqa_ground",
    title="Grounding generation for AVQA: does this frame belong to this second of sound",
    options=ReleaseOptions,
    build=late("avcl_avqa.ground:build"),
    data="avqa",
    published={"grounding": late("avcl_avqa.authors:grounding")},
)


class OpenOptions(Options):
    """Options of open-ended question answering.

    Attributes:
        experiences: one for each type of question (``types``, 4 or 5 of them), or the benchmark's ``increments``: for each type
            and group of labels, 24 or 55 by the partition file beside the questions.
        types: which types of questions, and in which order; by default all, in the benchmark's.
    """

    experiences: Literal["types", "increments"] = "types"
    types: tuple[str, ...] = ()


class ClosedOptions(OpenOptions):
    """Options of AVQACL's own setting, a closed list of answers that grows.

    Attributes:
        experiences: by default the benchmark's ``increments``.
        width: of the head, 512 as published; a multiple of 4.
    """

    experiences: Literal["types", "increments"] = "increments"
    width: PositiveInt = Field(default=512, multiple_of=4)


class OpenSourceOptions(Options):
    """Options of reading open-ended questions: where the media of conversation files are.

    Attributes:
        media_root: the folder that relative paths are relative to.
        path_rewrite: (written prefix, prefix instead), the first that fits.
    """

    media_root: Path | None = None
    path_rewrite: Sequence[tuple[str, str]] = ()


open_plugin = TaskPackage(
    name="avqa_open",
    title="Open-ended question answering (Split-AVQA, Split-MUSIC-AVQA): an experience for each type of question, generated answers",
    options=OpenOptions,
    build=late("avcl_avqa.open_task:build"),
    layout=late("avcl_avqa.open_files:layout"),
    compose=late("avcl_avqa.open_world:compose"),
    world_size=WorldSize(train=240, val=48, test=80),
    source=OpenSourceOptions,
    exports={
        "answers": late("avcl_avqa.open_outputs:export_results"),
        "stages": late("avcl_avqa.open_outputs:export_stages"),
        "benchmark": late("avcl_avqa.benchmark_output:export_benchmark"),
    },
)

closed_plugin = replace(
    open_plugin,
    name="avqa_closed",
    title="Question answering with a growing closed list (AVQACL's benchmark): an experience for each of 24 or 55 increments",
    options=ClosedOptions,
    build=late("avcl_avqa.closed_task:build"),
    data="avqa_open",
    exports={"benchmark": late("avcl_avqa.benchmark_output:export_benchmark")},
)
