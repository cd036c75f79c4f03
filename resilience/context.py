"""What a handler knows of the run it serves, and how it leaves a run to another worker."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Never, Protocol

from protocol import jsonio
from protocol.items import input_items, input_text
from resilience.chain_metadata import ConversationChainMetadata


class ExitForRecovery(BaseException):
    """The handler left its run for another worker to resume. It must not be caught: let it pass, or re-raise it."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseModeFlags:
    """How a response is made: the request's ``stream``, ``store`` and ``background``."""

    stream: bool
    store: bool
    background: bool


class ItemProvider(Protocol):
    """Where a context finds the items of other responses."""

    async def items(self, limit: int = -1) -> list[dict[str, Any]]:
        """Items of the earlier turns, oldest first; the newest `limit` of them, all if it is negative."""

    async def resolve(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The items with each reference replaced by what it refers to."""


class ResponseContext:
    """One handler entry's view of its response.

    Attributes:
        response_id: The response's id.
        mode_flags: How it is made: ``stream``, ``store``, ``background``.
        request: The request's body, as the client sent it.
        created_at: Unix time in seconds.
        conversation_id: The conversation's id, or None.
        previous_response_id: The predecessor's id, or None.
        client_headers: The request's ``x-client-*`` headers, names in lower case.
        query_parameters: The request's query parameters.
        principal: Who made the request.
        shutdown: Set when this worker has to stop: hand over with `exit_for_recovery`, or end.
        client_cancelled: True once the client cancelled the response or, in the foreground, went away.
        is_recovery: True if an earlier entry may have run for this response (R5).
        is_steered_turn: True if this turn was queued behind another one (S3).
        pending_input_count: Turns still queued behind this one.
        persisted_response: On recovery the last persisted snapshot, else None (R10).
        conversation_chain_metadata: What the turns of this chain keep for one another (S7); see
        `ConversationChainMetadata`.
    """

    def __init__(
        self,
        *,
        response_id: str,
        mode_flags: ResponseModeFlags,
        request: dict[str, Any] | None = None,
        created_at: int | None = None,
        provider: ItemProvider | None = None,
        input_items: list[dict[str, Any]] | None = None,
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
        history_limit: int = -1,
        client_headers: Mapping[str, str] | None = None,
        query_parameters: Mapping[str, str] | None = None,
        platform_context: str | None = None,
        prefetched_history_ids: Sequence[str] | None = None,
        steerable: bool = False,
        agent_name: str = "",
        session_id: str = "",
    ) -> None:
        """Make a context by hand, to call a handler in a test of its own; the server makes those of its runs.

        Args:
            response_id: The response's id.
            mode_flags: How the response is made.
            request: The request's body.
            created_at: Unix time in seconds; 0 if it is left out.
            provider: Where history and item references are looked up; without it there is no history, and references
                stay as they are.
            input_items: The input as items, instead of the request's own.
            previous_response_id: The predecessor's id.
            conversation_id: The conversation's id.
            history_limit: How many items `get_history` returns, -1 for all.
            client_headers: The request's ``x-client-*`` headers.
            query_parameters: The request's query.
            platform_context: Who makes the request; `principal` afterwards.
            prefetched_history_ids: Taken for the sake of ported code; history comes from the provider.
            steerable: Whether turns that follow a response make up one chain (S1).
            agent_name: Taken for the sake of ported code.
            session_id: Taken for the sake of ported code.
        """
        self.response_id = response_id
        self.mode_flags = mode_flags
        self.request: dict[str, Any] = request if request is not None else {}
        self.created_at = created_at or 0
        self.conversation_id = conversation_id
        self.previous_response_id = previous_response_id
        self.client_headers = dict(client_headers or {})
        self.query_parameters = dict(query_parameters or {})
        self.principal = platform_context or ""
        self.agent_name = agent_name
        self.session_id = session_id
        self.shutdown = asyncio.Event()
        self.client_cancelled = False
        self.is_recovery = False
        self.is_steered_turn = False
        self.pending_input_count = 0
        self.persisted_response: dict[str, Any] | None = None
        self.chain_id = conversation_id or (previous_response_id if steerable else None) or response_id
        self.conversation_chain_metadata = ConversationChainMetadata()
        self.resumable = mode_flags.background and mode_flags.store
        """True where `exit_for_recovery` can be used: row 1."""
        self._input_items = input_items
        self._provider = provider
        self._history_limit = history_limit

    @property
    def conversation_chain_id(self) -> str:
        """The opaque id that all turns of this chain share, in every attempt (S1)."""
        return self.chain_id

    async def get_input_items(self, *, resolve_references: bool = True) -> list[dict[str, Any]]:
        """The input as items; references replaced by what they refer to unless told otherwise."""
        given = self._input_items
        items = input_items(self.request, self.response_id) if given is None else jsonio.copy(given)
        return await self._provider.resolve(items) if resolve_references and self._provider else items

    async def get_input_text(self, *, resolve_references: bool = True) -> str:
        """The text of the input's messages, joined by line ends."""
        return input_text(await self.get_input_items(resolve_references=resolve_references))

    async def get_history(self) -> list[dict[str, Any]]:
        """Items of the earlier turns, input and output, oldest first (S6)."""
        return await self._provider.items(self._history_limit) if self._provider else []

    async def exit_for_recovery(self) -> Never:
        """Leave the run in progress for another worker to resume; never returns.

        Raises:
            RuntimeError: The run cannot be resumed: it is not a stored background run of a resilient app.
            ExitForRecovery: Always, otherwise.
        """
        if not self.resumable:
            raise RuntimeError(
                "exit_for_recovery() needs a stored background response and resilient_background=True; "
                "end this response with a terminal event instead"
            )
        raise ExitForRecovery
