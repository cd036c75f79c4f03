"""What a handler knows of the run it serves, and how it leaves a run to another worker."""

import asyncio
from typing import Any, Never

from protocol.items import input_items, input_text
from resilience.chain_metadata import ConversationChainMetadata
from resilience.dispatch import Disposition
from resilience.history import History
from resilience.record import RequestRecord


class ExitForRecovery(BaseException):
    """The handler left its run for another worker to resume. It must not be caught: let it pass, or re-raise it."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class ResponseContext:
    """One handler entry's view of its response.

    Attributes:
        response_id: The response's id.
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
        conversation_chain_id: The opaque id that all turns of this chain share, in every attempt (S1).
        conversation_chain_metadata: What the turns of this chain keep for one another (S7); see
        `ConversationChainMetadata`.
    """

    def __init__(
        self,
        record: RequestRecord,
        disposition: Disposition,
        history: History,
        *,
        chain_id: str,
        metadata: ConversationChainMetadata | None = None,
        history_limit: int = -1,
        is_recovery: bool = False,
        is_steered_turn: bool = False,
        pending_input_count: int = 0,
        persisted_response: dict[str, Any] | None = None,
    ) -> None:
        self.response_id = record.response_id
        self.request = record.request
        self.created_at = record.created_at
        self.conversation_id = record.conversation or None
        self.previous_response_id = record.previous_response_id or None
        self.client_headers = dict(record.client_headers)
        self.query_parameters = dict(record.query_parameters)
        self.principal = record.principal
        self.shutdown = asyncio.Event()
        self.client_cancelled = False
        self.is_recovery = is_recovery
        self.is_steered_turn = is_steered_turn
        self.pending_input_count = pending_input_count
        self.persisted_response = persisted_response
        self.conversation_chain_id = chain_id
        self.conversation_chain_metadata = metadata or ConversationChainMetadata()
        self._disposition = disposition
        self._history = history
        self._history_limit = history_limit

    async def get_input_items(self, *, resolve_references: bool = True) -> list[dict[str, Any]]:
        """The input as items; references replaced by what they refer to unless told otherwise."""
        items = input_items(self.request, self.response_id)
        return await self._history.resolve(items) if resolve_references else items

    async def get_input_text(self, *, resolve_references: bool = True) -> str:
        """The text of the input's messages, joined by line ends."""
        return input_text(await self.get_input_items(resolve_references=resolve_references))

    async def get_history(self) -> list[dict[str, Any]]:
        """Items of the earlier turns, input and output, oldest first (S6)."""
        return await self._history.items(self._history_limit)

    async def exit_for_recovery(self) -> Never:
        """Leave the run in progress for another worker to resume; never returns.

        Raises:
            RuntimeError: The run cannot be resumed: it is not a stored background run of a resilient app.
            ExitForRecovery: Always, otherwise.
        """
        if self._disposition is not Disposition.RESILIENT:
            raise RuntimeError(
                "exit_for_recovery() needs a stored background response and resilient_background=True; "
                "end this response with a terminal event instead"
            )
        raise ExitForRecovery
