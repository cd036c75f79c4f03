"""The turn from which a chain goes on when its last one is taken away (S4, B16)."""

from resilience.response_row import read_row
from resilience.runtime import Runtime
from storage.rows import ResponseRow


async def undeleted_before(runtime: Runtime, row: ResponseRow) -> str:
    """The id of the turn before this one, deleted ones passed over; "" if there is none, or it has expired.

    It may expire meanwhile. Then the chain is written too, and a write of the chain as it was read before is refused.
    """
    previous = row.previous_response_id
    while previous:
        earlier = await read_row(runtime.storage, row.partition_key, previous)
        if earlier is None:
            return ""
        if not earlier.deleted:
            return previous
        row = earlier
        previous = row.previous_response_id
    return await _turn_below(runtime, row) if row.turn > 1 else ""


async def _turn_below(runtime: Runtime, row: ResponseRow) -> str:
    """The newest undeleted turn with a lower number: a turn of a conversation does not say whom it follows.

    Not one whose client went away (B17): that was retracted, and what came after it follows the one before.
    """
    rows = await runtime.storage.rows.list_partition(row.partition_key)
    standing = [each for each in rows if not each.deleted and (each.background or each.status != "cancelled")]
    below = [each for each in standing if 0 < each.turn < row.turn]
    return max(below, key=lambda each: each.turn).id if below else ""
