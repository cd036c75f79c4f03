"""What a client is told when something is refused or fails.

Body format (W8): `{"error": {"message", "type", "param", "code"}}`, all four keys always there, plus `details` when a
request was invalid in several places and `additionalInfo.request_id`. Inside a response `error` is `{code, message}`.
The `error` event of a stream carries the same fields flat and under `error` (W7).
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
GENERIC_MESSAGE = "The server had an error while processing your request."


class ApiError(Exception):
    """The request failed.

    Attributes:
        status: HTTP status.
        type: `invalid_request_error`, `server_error`, ….
        message: for the client, in English; nothing internal.
        param: the field that is to blame, or None.
        code: a word for programs, or None.
        details: one object per fault found, when there are several.
        headers: further HTTP headers of the answer.
    """

    status: int = 500
    type: str = SERVER_ERROR
    default_code: ClassVar[str | None] = None
    default_param: ClassVar[str | None] = None

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message if message is not None else _first_line(type(self).__doc__)
        self.param = param if param is not None else self.default_param
        self.code = code if code is not None else self.default_code
        self.details: list[dict[str, Any]] = [dict(detail) for detail in details]
        self.headers: dict[str, str] = dict(headers or {})
        super().__init__(self.message)

    def body(self, request_id: str | None = None) -> dict[str, Any]:
        """The JSON body of the HTTP answer (W8)."""
        return {"error": self._error(request_id)}

    def _error(self, request_id: str | None) -> dict[str, Any]:
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.details:
            error["details"] = self.details
        if request_id:
            error["additionalInfo"] = {"request_id": request_id}
        return error


class InvalidRequest(ApiError):
    """The request is invalid."""

    status = 400
    type = INVALID_REQUEST
    default_code = "invalid_value"


class HandlerRefused(InvalidRequest):
    """The request was refused."""

    default_code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    """This parameter is not supported here."""

    default_code = "unsupported_parameter"


class UnknownParameter(InvalidRequest):
    """There is no such parameter."""

    default_code = "unknown_parameter"


class MalformedId(InvalidRequest):
    """The id is malformed."""

    default_code = "invalid_parameters"

    def __init__(self, value: str, param: str = "responseId") -> None:
        """`param` is `responseId` for an id of the path; the value is then named in it (B40)."""
        self.value = value
        shown = value.encode("utf-8", "replace").decode("utf-8")
        super().__init__(
            f"Malformed identifier: '{shown}'.",
            param=f"responseId{{{shown}}}" if param == "responseId" else param,
        )


class ResponseNotFound(ApiError):
    """The response was not found."""

    status = 404
    type = INVALID_REQUEST
    default_param = "id"

    def __init__(self, response_id: str | None = None) -> None:
        super().__init__(None if response_id is None else f"Response with id '{response_id}' not found.")


class PreviousResponseNotFound(ApiError):
    """The previous response was not found."""

    status = 404
    type = INVALID_REQUEST
    default_code = "previous_response_not_found"
    default_param = "previous_response_id"

    def __init__(self, response_id: str | None = None) -> None:
        super().__init__(None if response_id is None else f"Previous response with id '{response_id}' not found.")


class ConversationNotFound(ApiError):
    """The conversation was not found."""

    status = 404
    type = INVALID_REQUEST
    default_param = "conversation"

    def __init__(self, conversation_id: str | None = None) -> None:
        super().__init__(None if conversation_id is None else f"Conversation with id '{conversation_id}' not found.")


class CannotCancel(ApiError):
    """Cannot cancel this response."""

    status = 400
    type = INVALID_REQUEST

    def __init__(self, response_status: str | None = None) -> None:
        """`response_status`: the status that forbids it; None for a response that is not a background one (B12)."""
        article = "an" if response_status == "incomplete" else "a"
        super().__init__(f"Cannot cancel {article} {response_status or 'synchronous'} response.")


class CannotDeleteInFlight(ApiError):
    """Cannot delete an in-flight response."""

    status = 400
    type = INVALID_REQUEST


class ResponseDeleted(ApiError):
    """The response was deleted."""

    status = 400
    type = INVALID_REQUEST
    default_param = "id"

    def __init__(self, response_id: str | None = None) -> None:
        super().__init__(None if response_id is None else f"Response with id '{response_id}' was deleted.")


class StreamUnavailable(ApiError):
    """This response cannot be streamed: it was not created with both background=true and stream=true."""

    status = 400
    type = INVALID_REQUEST
    default_param = "stream"


class PayloadTooLarge(ApiError):
    """The request body is too large."""

    status = 413
    type = INVALID_REQUEST
    default_code = "request_too_large"


class AuthenticationFailed(ApiError):
    """Incorrect API key provided."""

    status = 401
    type = INVALID_REQUEST
    default_code = "invalid_api_key"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(ApiError):
    """This request is not allowed."""

    status = 403
    type = INVALID_REQUEST
    default_code = "forbidden"


class RateLimitExceeded(ApiError):
    """Too many requests, please retry later."""

    status = 429
    type = INVALID_REQUEST
    default_code = "rate_limit_exceeded"

    def __init__(self, message: str | None = None, *, retry_after: int = 1) -> None:
        """`retry_after`: seconds."""
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class Conflict(ApiError):
    """The request conflicts with another one."""

    status = 409
    type = INVALID_REQUEST
    default_code = "conflict"


class ConversationLocked(Conflict):
    """Another response of this conversation is still in progress."""

    default_code = "conversation_locked"
    default_param = "conversation"


class ConversationForkNotSupported(Conflict):
    """The previous response is not the latest one of its conversation chain."""

    default_code = "conversation_fork_not_supported"
    default_param = "previous_response_id"


class ConversationQueueFull(Conflict):
    """Too many turns are waiting in this conversation."""

    default_code = "conversation_queue_full"


class IdempotencyKeyReused(Conflict):
    """This Idempotency-Key was already used with another request body."""

    default_code = "idempotency_key_reused"
    default_param = "Idempotency-Key"


class ServerError(ApiError):
    """The server had an error while processing your request."""

    status = 500
    default_code = SERVER_ERROR


class ServiceUnavailable(ApiError):
    """The service is temporarily unavailable, please retry."""

    status = 503
    default_code = "service_unavailable"

    def __init__(self, message: str | None = None, *, retry_after: int = 1) -> None:
        """`retry_after`: seconds."""
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class AccessNotConfigured(ApiError):
    """This server is not told whom to serve."""

    status = 503
    default_code = "access_not_configured"

    def __init__(self, message: str | None = None, *, retry_after: int = 60) -> None:
        """`retry_after`: seconds."""
        super().__init__(message, headers={"Retry-After": str(retry_after)})


def failure(code: str, message: str, additional_info: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The `error` object inside a response."""
    error: dict[str, Any] = {"code": code, "message": message}
    if additional_info:
        error["additionalInfo"] = dict(additional_info)
    return error


def error_event(sequence_number: int, error: ApiError, request_id: str | None = None) -> dict[str, Any]:
    """The `error` event: the fields flat for some clients, under `error` for the others (W7)."""
    return {
        "type": "error",
        "sequence_number": sequence_number,
        "message": error.message,
        "code": error.code,
        "param": error.param,
        "error": error.body(request_id)["error"],
    }


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
