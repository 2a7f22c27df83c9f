"""One model per task: each experience is learnt by a fresh model of its own and judged on its own test sets."""

from avcl_core.methods.base import Method
from avcl_core.stream import Session, Stream


class Single(Method):
    """A fresh model per experience: what each task reaches when it shares nothing."""

    @classmethod
    def sessions(cls, stream: Stream) -> tuple[Session, ...]:
        """Return one fresh session per experience, followed by that experience's own tests."""
        return tuple(Session(e.index, (e,), stream.tests_of((e,)), fresh=True) for e in stream.experiences)
