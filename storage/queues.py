"""Wake-up hints: start this run, this worker has stopped.

Format: queue `responses-work` holds `{"v":1,"tenant":…,"id":…}`, with `"cleanup":true` after a deletion, with
`"late":true` where a first message was received and its response was not on record, or not deleted; queue
`responses-watch` holds `{"v":1,"worker":…,"epoch":n}`; both base64 on the wire, as the queue trigger of Functions
reads them. Messages never expire. A message is never the truth: whoever receives one looks at the row or the ledger.

The epoch says which of a worker's watch messages counts: those of a lower one than the row `worker` of its ledger has
are superseded. A message without an epoch (of a process that knew none, or of somebody who means the worker whatever
its message) always counts.
"""

import re
from dataclasses import dataclass
from typing import Any

import orjson

from storage.driver import WATCH_QUEUE, WORK_QUEUE, QueueReceipt, StorageDriver
from storage.seam import Operation, Seam

MESSAGE_VERSION = 1

_NAME = re.compile(r"[^/\\#?\x00-\x1f\x7f-\x9f]{1,256}")


class MalformedMessage(ValueError):
    """A queue message is not one of ours, or damaged."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join((type(self).__doc__ or "").split()))
        self.text = text


@dataclass(frozen=True, slots=True)
class StartMessage:
    """Start or continue the run of this response; with `cleanup`, complete its deletion.

    `late`: the second look for a response that was not on record, or not deleted, when a first message was received.
    """

    tenant: str
    id: str
    cleanup: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class WatchMessage:
    """This worker has stopped pushing its message forward; `epoch` None: whatever the ledger's epoch is."""

    worker: str
    epoch: int | None = None


def parse_start(text: str) -> StartMessage:
    """Raises `MalformedMessage`."""
    fields = _fields(text, "tenant", "id")
    cleanup, late = (fields.get(name) is True for name in ("cleanup", "late"))
    return StartMessage(fields["tenant"], fields["id"], cleanup=cleanup, late=late)


def parse_watch(text: str) -> WatchMessage:
    """Raises `MalformedMessage`."""
    fields = _fields(text, "worker")
    epoch = fields.get("epoch")
    if epoch is not None and type(epoch) is not int:
        raise MalformedMessage(text)
    return WatchMessage(fields["worker"], epoch)


def _fields(text: str, *names: str) -> dict[str, Any]:
    try:
        message: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedMessage(text) from error
    if not isinstance(message, dict) or message.get("v") != MESSAGE_VERSION:
        raise MalformedMessage(text)
    # They become keys of rows, which storage would refuse again and again.
    if not all(isinstance(message.get(name), str) and _NAME.fullmatch(message[name]) for name in names):
        raise MalformedMessage(text)
    return message


class WorkQueue:
    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def send_start(self, tenant: str, response_id: str, *, delay: float = 0, late: bool = False) -> None:
        """Ask for a run, visible after `delay` seconds."""
        await self._send({"tenant": tenant, "id": response_id}, delay, late=late)

    async def send_cleanup(self, tenant: str, response_id: str, *, delay: float = 0, late: bool = False) -> None:
        """Ask for the rest of a deletion, should there be one after `delay` seconds."""
        await self._send({"tenant": tenant, "id": response_id, "cleanup": True}, delay, late=late)

    async def depth(self) -> int:
        """About how many messages there are, those that are worked on or delayed included."""
        return await self._seam.run(Operation.QUEUE_DEPTH, self._driver.count_messages(WORK_QUEUE))

    async def _send(self, fields: dict[str, Any], delay: float, *, late: bool) -> None:
        text = orjson.dumps({"v": MESSAGE_VERSION, **fields} | ({"late": True} if late else {})).decode()
        await self._seam.run(Operation.QUEUE_SEND_START, self._driver.send_message(WORK_QUEUE, text, delay=delay))


class WatchQueue:
    def __init__(self, driver: StorageDriver, seam: Seam) -> None:
        self._driver = driver
        self._seam = seam

    async def send(self, worker_id: str, *, delay: float, epoch: int | None = None) -> QueueReceipt:
        """Put the watch message of a worker, visible after `delay` seconds unless it is pushed before.

        Not tried again without an answer: nobody could push the first one, if there is one.
        """
        numbered = {} if epoch is None else {"epoch": epoch}
        text = orjson.dumps({"v": MESSAGE_VERSION, "worker": worker_id, **numbered}).decode()
        call = self._driver.send_message(WATCH_QUEUE, text, delay=delay, once=True)
        return await self._seam.run(Operation.QUEUE_SEND_WATCH, call)

    def push_blocking(self, receipt: QueueReceipt, delay: float) -> QueueReceipt:
        """Hide the message for `delay` seconds from now; for the thread that keeps a worker alive.

        `PreconditionFailed` and `NotFound` say that somebody received the message, or that a reply was lost.
        """
        return self._seam.run_blocking(
            Operation.QUEUE_PUSH_WATCH,
            lambda: self._driver.update_message_blocking(WATCH_QUEUE, receipt, delay=delay),
        )

    async def delete(self, receipt: QueueReceipt) -> None:
        """Take the message away. Raises `PreconditionFailed` when somebody received it, `NotFound`."""
        await self._seam.run(Operation.QUEUE_DELETE_WATCH, self._driver.delete_message(WATCH_QUEUE, receipt))
