"""Requests that no handler runs: what a response would see is looked at, and nothing is stored."""

from protocol import ids
from protocol.errors import PreviousResponseNotFound
from resilience import chain
from resilience.context import ResponseContext
from resilience.conversations import refuse_deleted
from resilience.creation import Call
from resilience.dispatch import Disposition
from resilience.history import History
from resilience.placement import partition_key, tenant_of
from resilience.record import RequestRecord
from resilience.response_row import read_row
from resilience.rows import is_unseen
from resilience.run_context import context_of
from resilience.runtime import Runtime


async def context_for(runtime: Runtime, call: Call) -> ResponseContext:
    """The context that a handler would have for this request.

    Raises:
        PreviousResponseNotFound: There is no such response for this principal.
        ConversationNotFound: The conversation was deleted.
    """
    record = RequestRecord(
        response_id=ids.new_response_id(ids.new_partition()),
        created_at=runtime.now(),
        principal=call.principal,
        request=call.request,
        client_headers=dict(call.client_headers),
        query_parameters=dict(call.query_parameters),
        agent_reference=call.request.get("agent_reference"),
    )
    key = _place(call, record)
    if record.previous_response_id:
        row = await read_row(runtime.storage, key, record.previous_response_id)
        if row is None or row.deleted or is_unseen(row):
            raise PreviousResponseNotFound(record.previous_response_id)
    if record.conversation:
        await refuse_deleted(runtime, key, record.conversation)
    return context_of(
        record,
        Disposition.TRANSIENT,
        History(runtime.storage, key, record),
        chain_id=chain.chain_id(key, record, runtime.app.options),
        history_limit=runtime.app.options.default_fetch_history_count,
    )


def _place(call: Call, record: RequestRecord) -> str:
    """The partition of what came before."""
    if record.previous_response_id:
        return partition_key(tenant_of(call.principal), record.previous_response_id)
    if record.conversation:
        nobody = ids.new_response_id(ids.derived_partition(record.conversation))
        return partition_key(tenant_of(call.principal), nobody)
    return partition_key(tenant_of(call.principal), record.response_id)
