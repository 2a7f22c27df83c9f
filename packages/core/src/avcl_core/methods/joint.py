"""Joint training: learn all experiences together in one session; the upper reference, which has no retention."""

from avcl_core.methods.base import Method
from avcl_core.stream import Session, Stream


class Joint(Method):
    """All experiences in a single session; batches of the experiences alternate in random order."""

    @classmethod
    def sessions(cls, stream: Stream) -> tuple[Session, ...]:
        """Return one session over everything."""
        return (Session(0, stream.experiences, stream.tests),)
