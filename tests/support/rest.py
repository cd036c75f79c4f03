"""Whether a deployment has come to rest: nothing is left to do for anybody."""

import asyncio

from azure.core.exceptions import ResourceNotFoundError
from azure.storage.queue import QueueServiceClient

from protocol.response import TERMINAL_STATUSES
from storage.connection import PREFIX_SETTING, SETTING, Storage
from storage.driver import QUEUES, RESPONSES, WORKERS
from storage.rows import ROW_PREFIX


async def left_to_do(storage: Storage, environment: dict[str, str]) -> list[str]:
    """Responses without an outcome, ledgers, and queues that have messages; poison queues count."""
    rows = await storage.driver.query_entities(RESPONSES, row_key_prefix=ROW_PREFIX, select=["status"])
    left = [row.row_key for row in rows if row.properties["status"] not in TERMINAL_STATUSES]
    ledgers = await storage.driver.query_entities(WORKERS, select=["state"])
    left += [f"{row.partition_key}/{row.row_key}" for row in ledgers]
    return left + await asyncio.to_thread(_queues, environment[SETTING], environment[PREFIX_SETTING])


def _queues(connection_string: str, prefix: str) -> list[str]:
    left = []
    with QueueServiceClient.from_connection_string(connection_string) as service:
        for queue in QUEUES:
            for name in (f"{prefix}{queue}", f"{prefix}{queue}-poison"):
                try:
                    count = service.get_queue_client(name).get_queue_properties().approximate_message_count
                except ResourceNotFoundError:
                    continue
                if count:
                    left.append(f"{name}: {count} messages")
    return left
