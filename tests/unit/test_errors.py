"""Error bodies and events (W7, W8, B2, B12, B40)."""

import inspect
from http import HTTPStatus

import pytest
from openai.types.responses import ResponseErrorEvent

from protocol import errors


def concrete() -> list[type[errors.ApiError]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.ApiError) and kind is not errors.MalformedId
    ]


@pytest.mark.parametrize("kind", concrete())
def test_every_error_body_has_all_four_keys(kind: type[errors.ApiError]) -> None:
    error = kind()

    body = error.body()

    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert HTTPStatus(error.status).is_client_error or HTTPStatus(error.status).is_server_error


@pytest.mark.parametrize("kind", concrete())
def test_the_class_says_the_same_as_its_answer(kind: type[errors.ApiError]) -> None:
    assert kind().body()["error"]["type"] == ("server_error" if kind.status >= 500 else "invalid_request_error")


def test_the_message_is_the_first_line_of_the_docstring() -> None:
    assert errors.CannotDeleteInFlight().message == "Cannot delete an in-flight response."
    assert str(errors.CannotDeleteInFlight()) == "Cannot delete an in-flight response."


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("completed", "Cannot cancel a completed response."),
        ("failed", "Cannot cancel a failed response."),
        ("incomplete", "Cannot cancel an incomplete response."),
        (None, "Cannot cancel a synchronous response."),
    ],
)
def test_a_refused_cancel_says_why(status: str | None, message: str) -> None:
    error = errors.CannotCancel(status)

    assert (error.status, error.type, error.message) == (400, "invalid_request_error", message)


def test_the_request_id_and_details_stand_in_the_body() -> None:
    error = errors.InvalidRequest("bad", details=[{"param": "$.a"}])

    body = error.body("req_1")

    assert body["error"]["details"] == [{"param": "$.a"}]
    assert body["error"]["additionalInfo"] == {"request_id": "req_1"}


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (errors.ResponseNotFound("resp_1"), 404, None, "id"),
        (errors.PreviousResponseNotFound("resp_1"), 404, "previous_response_not_found", "previous_response_id"),
        (errors.StreamUnavailable(), 400, None, "stream"),
        (errors.MalformedId("x"), 400, "invalid_parameters", "responseId{x}"),
        (errors.MalformedId("x", "previous_response_id"), 400, "invalid_parameters", "previous_response_id"),
        (errors.ConversationLocked(), 409, "conversation_locked", "conversation"),
        (errors.ConversationForkNotSupported(), 409, "conversation_fork_not_supported", "previous_response_id"),
        (errors.ConversationQueueFull(), 409, "conversation_queue_full", None),
        (errors.IdempotencyKeyReused(), 409, "idempotency_key_reused", "Idempotency-Key"),
        (errors.Conflict(code="conversation_locked"), 409, "conversation_locked", None),
        (errors.HandlerRefused("no"), 400, "invalid_request", None),
        (errors.UnsupportedParameter(param="background"), 400, "unsupported_parameter", "background"),
        (errors.ServerError(), 500, "server_error", None),
        (errors.PayloadTooLarge(), 413, "request_too_large", None),
    ],
)
def test_an_error_has_its_status_code_and_param(
    error: errors.ApiError, status: int, code: str | None, param: str | None
) -> None:
    assert (error.status, error.code, error.param) == (status, code, param)


def test_an_unavailable_service_says_when_to_come_back() -> None:
    assert errors.ServiceUnavailable(retry_after=7).headers == {"Retry-After": "7"}


def test_the_error_event_carries_its_fields_twice() -> None:
    event = errors.error_event(4, errors.InvalidRequest("bad", param="input"), "req_1")

    flat = {key: event[key] for key in ("message", "code", "param")}
    assert flat.items() <= event["error"].items()
    assert (event["type"], event["sequence_number"]) == ("error", 4)
    assert event["error"]["additionalInfo"] == {"request_id": "req_1"}
    ResponseErrorEvent.model_validate(event, strict=True)


def test_a_failure_inside_a_response_is_code_and_message() -> None:
    assert errors.failure("server_error", "broken") == {"code": "server_error", "message": "broken"}
    assert errors.failure("x", "y", {"shutdown_reason": "crash_recovery"})["additionalInfo"] == {
        "shutdown_reason": "crash_recovery"
    }
