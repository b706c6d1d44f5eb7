"""How long an engine has had no request but our own. Pure: looks in, seconds out."""

from model_server.hang_detector import Pulse


class IdleClock:
    """
    Follows one life of an engine, from when it was ready.

    Requests are counted when they end, so that one which came and went between two looks is seen.

    Attributes:
        idle_s: Seconds without a request; what is not known for certain does not count.
    """

    def __init__(self) -> None:
        self._finished: float | None = None
        self.idle_s = 0.0

    def look(self, pulse: Pulse | None, *, after_s: float, own: int | None) -> None:
        """
        Take in one look.

        Args:
            pulse: What the engine said; None if it did not answer.
            after_s: Seconds since the look before, no more than a look takes.
            own: Canaries that it has answered; None while one is on its way.
        """
        if pulse is None or pulse.finished is None or own is None:
            return
        finished = pulse.finished - own
        if pulse.busy or finished != self._finished:
            self._finished, self.idle_s = finished, 0.0
            return
        self.idle_s += after_s
