"""The order in which a builder's calls must come, and the error when they do not."""

from enum import Enum

from protocol.events import InvalidEvent


class BuilderLifecycleState(Enum):
    """How far a builder is. It never goes back."""

    NOT_STARTED = "not_started"
    ADDED = "added"
    DONE = "done"


class BuilderOrderError(InvalidEvent, ValueError):
    """A builder was called out of order.

    A ValueError, because that is what handlers ported from other servers catch; an `InvalidEvent`, because it is a
    fault of the handler and not of the request (B30).

    Attributes:
        builder: class name of the builder or stream.
        call: the method that came too early or too late.
        expected: what should have happened instead.
    """

    def __init__(self, builder: str, call: str, expected: str) -> None:
        self.builder = builder
        self.call = call
        self.expected = expected
        super().__init__(f"{builder}.{call}() is out of order: {expected}")


_EXPECTED = {
    BuilderLifecycleState.NOT_STARTED: "emit_added() must come first",
    BuilderLifecycleState.ADDED: "it was called before",
    BuilderLifecycleState.DONE: "nothing can follow emit_done()",
}


class Lifecycle:
    """not started → added → done. A step is taken after its event is out, so that a refused item can be given again."""

    def __init__(self, builder: str) -> None:
        self.builder = builder
        self.state = BuilderLifecycleState.NOT_STARTED

    def before(self, call: str) -> None:
        """Check that `call` comes before everything else.

        Raises:
            BuilderOrderError: it does not.
        """
        self._require(BuilderLifecycleState.NOT_STARTED, call)

    def during(self, call: str) -> None:
        """Check that `call` comes between added and done.

        Raises:
            BuilderOrderError: it does not.
        """
        self._require(BuilderLifecycleState.ADDED, call)

    def add(self) -> None:
        """Enter `added`."""
        self.state = BuilderLifecycleState.ADDED

    def finish(self) -> None:
        """Enter `done`."""
        self.state = BuilderLifecycleState.DONE

    def _require(self, state: BuilderLifecycleState, call: str) -> None:
        if self.state is not state:
            raise BuilderOrderError(self.builder, call, _EXPECTED[self.state])
