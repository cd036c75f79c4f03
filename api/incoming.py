"""What an HTTP request says, apart from the body's meaning: who sends it, its id, headers, query and bytes."""

import re

from starlette.requests import Request

from api.access import Access
from api.headers import single_header
from protocol.errors import InvalidRequest, PayloadTooLarge
from protocol.ids import check_response_id, new_request_id

REQUEST_ID_HEADER = "x-request-id"
CLIENT_HEADER_PREFIX = "x-client-"
IDEMPOTENCY_KEY_HEADER = "idempotency-key"
MAX_IDEMPOTENCY_KEY = 255

# A refused body is read to its end up to this many times the limit: a client that is still sending would see a broken
# connection in place of the 413.
_DRAINED_LIMITS = 4

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,63}", re.ASCII)
_TRUTHS = {"true": True, "false": False}
_PRINCIPAL = "responses.principal"


class NotAdmitted(Exception):
    """A request reached its endpoint without having been let in."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"{type(self).__doc__} {path}")


def admit(request: Request, access: Access) -> None:
    """Let a request in, and note who sends it.

    Raises:
        ApiError: It may not come in.
    """
    request.scope[_PRINCIPAL] = access.principal_of(request)


def principal_of(request: Request) -> str:
    """Who sends the request.

    Raises:
        NotAdmitted: Nobody let it in: its endpoint has a way past the entrance.
    """
    try:
        return str(request.scope[_PRINCIPAL])
    except KeyError:
        raise NotAdmitted(request.url.path) from None


def request_id_of(request: Request) -> str:
    """The client's own `x-request-id` if it is short and a plain token, else a new one."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else new_request_id()


def response_id_of(request: Request) -> str:
    """The response id in the path.

    Raises:
        MalformedId: It is none (B40).
    """
    return check_response_id(request.path_params.get("response_id"))


def client_headers_of(request: Request) -> dict[str, str]:
    """The `x-client-*` headers, names in lower case (R3)."""
    return {name.lower(): value for name, value in request.headers.items() if name.startswith(CLIENT_HEADER_PREFIX)}


def query_of(request: Request) -> dict[str, str]:
    """The query parameters; of a repeated one the last."""
    return dict(request.query_params)


def wants_stream(request: Request) -> bool:
    """The query parameter `stream`.

    Raises:
        InvalidRequest: It is neither true nor false.
    """
    text = request.query_params.get("stream", "false")
    try:
        return _TRUTHS[text.lower()]
    except KeyError:
        raise InvalidRequest("Invalid value for 'stream': expected 'true' or 'false'.", param="stream") from None


async def body_of(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes.

    Raises:
        PayloadTooLarge: It is larger, by its own account or in fact.
        ClientDisconnect: The client went away before its end.
    """
    refusal = PayloadTooLarge(f"The request body is larger than {limit} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit * _DRAINED_LIMITS:
        raise refusal
    size = 0
    chunks: list[bytes] = []
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit * _DRAINED_LIMITS:
            break
        else:
            chunks.clear()
    if size > limit:
        raise refusal
    return b"".join(chunks)


def trace_headers_of(request: Request) -> dict[str, str]:
    """The headers `traceparent` and `tracestate`, each if it is there once."""
    return {name: value for name in ("traceparent", "tracestate") if (value := single_header(request, name))}


def idempotency_key_of(request: Request) -> str:
    """The `Idempotency-Key` header, "" for none (I1).

    Raises:
        InvalidRequest: It is too long.
    """
    key = request.headers.get(IDEMPOTENCY_KEY_HEADER, "")
    if len(key) > MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest(
            f"The Idempotency-Key is longer than {MAX_IDEMPOTENCY_KEY} characters.", param="Idempotency-Key"
        )
    return key
