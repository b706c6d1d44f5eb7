"""
Reads an engine's stream of events: everything that is there at once, under a timer.

A token a read costs a wake-up; twenty tokens that came in one read cost one wake-up too.
"""

from orchestrator.generation.event_stream import EventStreamParser
from orchestrator.generation.response_body import ResponseBody


class EventReader:
    """
    The events of one body.

    Args:
        body: Its bytes.
        parser: Makes events of them.
    """

    __slots__ = ("_body", "_parser")

    def __init__(self, body: ResponseBody, parser: EventStreamParser) -> None:
        self._body = body
        self._parser = parser

    async def read(self, until_s: float) -> list[str]:
        """
        Every event that has come since the last call, at least one; none once the body has ended.

        Args:
            until_s: Give up at this time of the event loop, in seconds.

        Raises:
            TimeoutError: If no event was completed until then.
            WireError: If the connection broke, after the events before it.
            EngineProtocolError: If an event is too long, after the events before it.
        """
        while part := await self._body.take(until_s):
            if events := self._parser.feed(part):
                return events
        return []
