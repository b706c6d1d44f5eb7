"""
Server-sent events out of bytes, however the network cut them.

Only `data` matters here: it is what an OpenAI-compatible engine speaks in. Follows the WHATWG rules
for the rest: LF, CR and CRLF end a line, an empty line ends an event, several data lines are joined,
comments and other fields say nothing, and an event without its empty line never happened.

Source:
    HTML Living Standard, section 9.2.6 "Interpreting an event stream".
"""

from orchestrator.errors import EngineProtocolError

MAX_EVENT_BYTES = 1024 * 1024
"""A chunk of a completion is some hundred bytes; nothing honest comes near."""

_BOM = b"\xef\xbb\xbf"


class EventStreamParser:
    """
    The data of the events of one stream, in order.

    Holds at most `max_event_bytes` of the event that is under way.

    Args:
        max_event_bytes: Longest line, and longest data of one event, in bytes.
    """

    __slots__ = ("_after_cr", "_begun", "_data", "_data_bytes", "_line", "_max_bytes", "_too_long")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._after_cr = False
        self._begun = False
        self._too_long = False

    def feed(self, part: bytes) -> list[str]:
        """
        The data of every event that `part` completes; what is no UTF-8 in it is replaced.

        Raises:
            EngineProtocolError: If an event is longer than allowed. Events before it are given
                first: the error then comes with the next call.
        """
        self._require_sound()
        if self._plain(part):
            return self._whole_events(part)
        events: list[str] = []
        for line in self._lines(part):
            self._take(line, events)
            if self._too_long:
                break
        else:
            self._too_long = len(self._line) - self._bom_bytes() > self._max_bytes
        if not events:
            self._require_sound()
        return events

    def _plain(self, part: bytes) -> bool:
        """Whether `part` is nothing but whole events of lines that end in LF, as vLLM sends."""
        return (
            self._begun
            and part.endswith(b"\n\n")
            and len(part) <= self._max_bytes
            and not (self._line or self._data or self._after_cr)
            and b"\r" not in part
        )

    def _whole_events(self, part: bytes) -> list[str]:
        """The short way: no line is left over, and none can be too long."""
        events: list[str] = []
        for block in part[:-2].split(b"\n\n"):
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(block[6:].decode("utf-8", "replace"))
            else:
                for line in (*block.split(b"\n"), b""):
                    self._take(line, events)
        return events

    def _lines(self, part: bytes) -> list[bytes]:
        """The lines that `part` completes; the rest is kept for the next one."""
        if not part:
            return []
        if self._after_cr and part.startswith(b"\n"):  # the second half of a CRLF
            part = part[1:]
        self._after_cr = part.endswith(b"\r") if part else False
        *lines, rest = part.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if lines:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        self._line += rest
        return lines

    def _bom_bytes(self) -> int:
        """Length of the mark before the very first line, which is no part of it."""
        return len(_BOM) if not self._begun and self._line.startswith(_BOM) else 0

    def _take(self, line: bytes, events: list[str]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(b"\n".join(self._data).decode("utf-8", "replace"))
                self._data.clear()
                self._data_bytes = 0
            return
        name, _, value = line.partition(b":")
        self._too_long = len(line) > self._max_bytes
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._data_bytes += len(self._data[-1]) + 1
            self._too_long |= self._data_bytes > self._max_bytes

    def _require_sound(self) -> None:
        if self._too_long:
            raise EngineProtocolError(
                f"The engine sent an event of more than {self._max_bytes} bytes. "
                "Is the address that of an OpenAI-compatible server?"
            )
