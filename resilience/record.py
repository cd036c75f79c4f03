"""The record of an accepted request: everything a handler entry needs, on any worker, at any age (R3).

Format: one JSON object, version 1. It is made once, at acceptance, and read by every entry, the first included, so
that a recovered handler cannot see anything else than the first one did. It is immutable.

    {"v": 1, "response_id", "created_at", "principal", "request", "client_headers", "query_parameters",
    "agent_reference", "request_key", "trace_context"}

`trace_context`, which is left out where there is none, is for telemetry alone (`resilience.telemetry`).
"""

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from protocol import ids, jsonio
from protocol.response import new_response

VERSION = 1


class MalformedRecord(Exception):
    """The stored record of a request cannot be read; its handler is not called."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class _Stored(BaseModel):
    # The error is logged, the request is not.
    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)

    v: int
    response_id: str
    created_at: int
    principal: str
    request: dict[str, Any]
    client_headers: dict[str, str]
    query_parameters: dict[str, str]
    agent_reference: dict[str, Any] | None
    request_key: str = ""
    trace_context: dict[str, str] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """An accepted request, as every handler entry sees it."""

    response_id: str
    created_at: int
    principal: str
    request: dict[str, Any]
    client_headers: dict[str, str]
    query_parameters: dict[str, str]
    agent_reference: dict[str, Any] | None
    request_key: str = ""
    """The hash of its idempotency key, "" for none."""
    trace_context: dict[str, str] = field(default_factory=dict)
    """The trace that it belongs to, and when it was accepted."""

    @property
    def partition(self) -> str:
        """The partition that co-locates the chain of this response."""
        return ids.partition_of(self.response_id)

    @property
    def conversation(self) -> str:
        """The conversation's id, or ""."""
        value = self.request.get("conversation")
        return str(value["id"]) if isinstance(value, dict) else str(value or "")

    @property
    def previous_response_id(self) -> str:
        """The predecessor's id, or ""."""
        return str(self.request.get("previous_response_id") or "")

    def to_bytes(self) -> bytes:
        """The stored form."""
        return jsonio.dumps(
            {
                "v": VERSION,
                "response_id": self.response_id,
                "created_at": self.created_at,
                "principal": self.principal,
                "request": self.request,
                "client_headers": self.client_headers,
                "query_parameters": self.query_parameters,
                "agent_reference": self.agent_reference,
                "request_key": self.request_key,
                **({"trace_context": self.trace_context} if self.trace_context else {}),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "RequestRecord":
        """Read the stored form.

        Raises:
            MalformedRecord: It is not what `to_bytes` writes.
        """
        try:
            stored = _Stored.model_validate(jsonio.loads(data))
        except (ValueError, ValidationError) as error:
            raise MalformedRecord from error
        if stored.v != VERSION:
            raise MalformedRecord
        return cls(**{name: getattr(stored, name) for name in cls.__slots__})

    def snapshot(self, default_model: str | None, status: str) -> dict[str, Any]:
        """The response object before its handler has said anything."""
        return new_response(
            self.request,
            response_id=self.response_id,
            created_at=self.created_at,
            default_model=default_model,
            status=status,
            agent_reference=self.agent_reference,
        )
