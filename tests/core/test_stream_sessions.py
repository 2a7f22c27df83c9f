"""Streams and sessions: refusals, identity, and what each method's division evaluates after what."""

import pytest

from avcl_core.errors import ConfigError
from avcl_core.methods.base import Method
from avcl_core.methods.joint import Joint
from avcl_core.methods.single import Single
from avcl_core.stream import Experience, Stream, TestSet, concatenation


def experience(name, task="t", index=0):
    return Experience(index, name, task, (f"{name}1", f"{name}2"), (f"{name}3",), (f"{name}4",))


STREAM = concatenation("s", [experience("a"), experience("b", "u"), experience("c")])


def test_concatenation_numbers_experiences_and_gives_each_a_test_set():
    assert [e.index for e in STREAM.experiences] == [0, 1, 2]
    assert [t.name for t in STREAM.tests] == ["a", "b", "c"]
    assert STREAM.tasks == ("t", "u")
    assert STREAM.experience("b").keys("val") == ("b3",)


def test_json_and_digest_identify_a_stream():
    again = Stream.from_json(STREAM.to_json())
    assert (again, again.digest) == (STREAM, STREAM.digest)
    other = concatenation("s", [experience("a"), experience("c"), experience("b", "u")])
    hidden = concatenation("s", STREAM.experiences, task_id="hidden")
    assert len({STREAM.digest, other.digest, hidden.digest}) == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Stream("s", (), ()), "no experiences"),
        (lambda: concatenation("s", [experience("a"), experience("a")]), r"experience names repeat: \['a'\]"),
        (lambda: Stream("s", (experience("a", index=1),), ()), "experience a has index 1, expected 0"),
        (lambda: Stream("s", (experience("a"),), (TestSet("x", "b"),)), r"unknown experiences \['b'\]"),
        (lambda: Stream("s", (experience("a"),), (TestSet("x", "a"),) * 2), r"test set names repeat: \['x'\]"),
        (lambda: concatenation("s", [experience("a.b")]), r"experience name 'a\.b'"),
        (lambda: concatenation("s", [experience("a", task="x.y")]), r"task name 'x\.y'"),
    ],
)
def test_bad_streams_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def rows(method):
    return [
        ([e.name for e in s.experiences], [t.name for t in s.tests], s.fresh, s.row) for s in method.sessions(STREAM)
    ]


def test_incremental_methods_judge_everything_seen_so_far():
    assert rows(Method) == [
        (["a"], ["a"], False, "a"), (["b"], ["a", "b"], False, "b"), (["c"], ["a", "b", "c"], False, "c"),
    ]  # fmt: skip


def test_joint_is_one_session_and_single_are_fresh_ones():
    assert rows(Joint) == [(["a", "b", "c"], ["a", "b", "c"], False, "c")]
    assert rows(Single) == [([n], [n], True, n) for n in "abc"]
