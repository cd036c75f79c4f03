"""The context of a run: a `ResponseContext` over what is recorded of its response."""

from typing import Any

from resilience.chain_metadata import ConversationChainMetadata
from resilience.context import ResponseContext, ResponseModeFlags
from resilience.dispatch import Disposition
from resilience.history import History
from resilience.record import RequestRecord


def context_of(
    record: RequestRecord,
    disposition: Disposition,
    history: History,
    *,
    chain_id: str,
    metadata: ConversationChainMetadata | None = None,
    history_limit: int = -1,
    is_recovery: bool = False,
    is_steered_turn: bool = False,
    persisted_response: dict[str, Any] | None = None,
) -> ResponseContext:
    """What a handler entry is told; equal in every entry but for the last three."""
    reference = record.agent_reference or {}
    context = ResponseContext(
        response_id=record.response_id,
        mode_flags=ResponseModeFlags(
            stream=bool(record.request.get("stream")),
            store=disposition is not Disposition.TRANSIENT,
            background=disposition.runs_in_background,
        ),
        request=record.request,
        created_at=record.created_at,
        provider=history,
        previous_response_id=record.previous_response_id or None,
        conversation_id=record.conversation or None,
        history_limit=history_limit,
        client_headers=record.client_headers,
        query_parameters=record.query_parameters,
        platform_context=record.principal,
        agent_name=str(reference.get("name") or ""),
    )
    context.chain_id = chain_id
    if metadata is not None:  # an empty one counts as false, and is bound to its chain all the same
        context.conversation_chain_metadata = metadata
    context.is_recovery = is_recovery
    context.is_steered_turn = is_steered_turn
    context.persisted_response = persisted_response
    context.resumable = disposition is Disposition.RESILIENT
    return context
