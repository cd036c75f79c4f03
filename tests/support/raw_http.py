"""HTTP as bytes: sends whatever it is told, well-formed or not, and reads what comes back, within a deadline."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

READ_BYTES = 1 << 16

type Framing = Literal["length", "chunked", "short", "none"]


class NoAnswerInTime(AssertionError):
    """The server neither answered nor closed the connection within the deadline."""


@dataclass(frozen=True)
class RawRequest:
    """A request.

    Attributes:
        target: Path and query, as they stand in the request line.
        framing: How the body's end is told: its length, chunks, a `short` body that ends before its length, or none.
    """

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    framing: Framing = "length"

    def __repr__(self) -> str:
        headers = [(name, _shown(value)) for name, value in self.headers]
        return (
            f"RawRequest({self.method} {_shown(self.target)}, {headers}, {self.framing}, "
            f"{len(self.body)} bytes: {_shown(self.body)})"
        )

    def chunks(self) -> Iterator[bytes]:
        """Everything that goes over the connection."""
        lines = [f"{self.method} ".encode() + self.target + b" HTTP/1.1", b"host: localhost", b"connection: close"]
        lines += [name + b": " + value for name, value in self.headers]
        match self.framing:
            case "length":
                lines.append(b"content-length: %d" % len(self.body))
            case "short":
                lines.append(b"content-length: %d" % (len(self.body) + 1000))
            case "chunked":
                lines.append(b"transfer-encoding: chunked")
        yield b"\r\n".join(lines) + b"\r\n\r\n"
        if self.framing == "chunked":
            size = max(1, len(self.body) // 3)
            for start in range(0, len(self.body), size):
                piece = self.body[start : start + size]
                yield b"%x\r\n%b\r\n" % (len(piece), piece)
            yield b"0\r\n\r\n"
        elif self.framing != "none":
            yield self.body


@dataclass(frozen=True)
class RawAnswer:
    """An answer; names of headers are in lower case. `status` is 0 when the server closed without one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def exchange(address: tuple[str, int], request: RawRequest, seconds: float) -> RawAnswer:
    """Send a request on a connection of its own and read to the connection's end.

    Raises:
        NoAnswerInTime: after `seconds`.
    """
    deadline = time.monotonic() + seconds
    received = bytearray()
    try:
        with socket.create_connection(address, timeout=seconds) as connection:
            _send(connection, request)
            while piece := _receive(connection, deadline):
                received += piece
    except TimeoutError:
        raise NoAnswerInTime(f"after {seconds} s: {request!r}; so far {bytes(received[:200])!r}") from None
    except ConnectionError:
        pass  # a server may close before it has read everything
    return _answer(bytes(received), request.method)


def _send(connection: socket.socket, request: RawRequest) -> None:
    try:
        for piece in request.chunks():
            connection.sendall(piece)
        if request.framing == "short":
            connection.shutdown(socket.SHUT_WR)
    except TimeoutError:
        raise
    except OSError:
        pass  # the server has closed the connection, perhaps after an answer


def _receive(connection: socket.socket, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection.recv(READ_BYTES)


def _answer(received: bytes, method: str) -> RawAnswer:
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return RawAnswer(0, body=received)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if method == "HEAD":
        body = b""
    elif headers.get("transfer-encoding") == "chunked":
        body = _dechunked(body)
    return RawAnswer(int(first.split(" ")[1]), headers, body)


def _dechunked(body: bytes) -> bytes:
    pieces = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(body[:length])
        body = body[length + 2 :]
    return b"".join(pieces)


def _shown(data: bytes) -> str:
    return repr(data if len(data) <= 300 else data[:200] + b" ... " + data[-60:])
