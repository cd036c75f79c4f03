"""Wake-up hints: start this run, this worker has stopped.

Format: queue `responses-work` holds `{"v":1,"tenant":…,"id":…}`, with `"cleanup":true` after a deletion, with
`"late":true` where a first message was received and its response was not on record, or not deleted; queue
`responses-watch` holds `{"v":1,"worker":…,"epoch":n}`, once it was pushed with `"hidden_until":t`, and with
`"again":true` where who received it sent it again; both base64 on the wire, as the queue trigger of Functions reads
them. Messages never expire. A message is never the truth: whoever receives one looks at the row or the ledger.

The epoch says which of a worker's watch messages counts: those of a lower one than the row `worker` of its ledger has
are superseded. A message without an epoch (of a process that knew none, or of somebody who means the worker whatever
its message) always counts.

`hidden_until` tells until when the push before the last one hid the message, in Unix seconds of the service's clock:
a push learns its own only from its answer. `again`: an earlier receiver did not judge by the message, so this one does.
"""

import re
from dataclasses import dataclass, replace
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
    """This worker has stopped pushing its message forward; `epoch` None: whatever the ledger's epoch is.

    `hidden_until`: about when it became visible, by the service's clock; None if it was never pushed. `again`: sent
    again by one who received it.
    """

    worker: str
    epoch: int | None = None
    hidden_until: float | None = None
    again: bool = False

    @property
    def text(self) -> str:
        """As it is sent."""
        fields: dict[str, Any] = {"v": MESSAGE_VERSION, "worker": self.worker}
        if self.epoch is not None:
            fields["epoch"] = self.epoch
        if self.hidden_until is not None:
            fields["hidden_until"] = self.hidden_until
        return orjson.dumps(fields | ({"again": True} if self.again else {})).decode()


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
    # A hint only: one that cannot be read is none.
    hidden_until = fields.get("hidden_until")
    known = type(hidden_until) in (int, float)
    return WatchMessage(fields["worker"], epoch, hidden_until if known else None, again=fields.get("again") is True)


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

    async def send(
        self,
        worker_id: str,
        *,
        delay: float,
        epoch: int | None = None,
        hidden_until: float | None = None,
        again: bool = False,
    ) -> QueueReceipt:
        """Put the watch message of a worker, visible after `delay` seconds unless it is pushed before.

        Not tried again without an answer: nobody could push the first one, if there is one.
        """
        text = WatchMessage(worker_id, epoch, hidden_until, again).text
        call = self._driver.send_message(WATCH_QUEUE, text, delay=delay, once=True)
        return await self._seam.run(Operation.QUEUE_SEND_WATCH, call)

    def push_blocking(self, message: WatchMessage, receipt: QueueReceipt, delay: float) -> QueueReceipt:
        """Hide the message for `delay` seconds from now, and let it tell until when it was hidden before; for a thread.

        `PreconditionFailed` and `NotFound` say that somebody received the message, or that a reply was lost.
        """
        known = receipt.hidden_until
        text = replace(message, hidden_until=known.timestamp() if known else None).text
        return self._seam.run_blocking(
            Operation.QUEUE_PUSH_WATCH,
            lambda: self._driver.update_message_blocking(WATCH_QUEUE, receipt, delay=delay, text=text),
        )

    async def delete(self, receipt: QueueReceipt) -> None:
        """Take the message away. Raises `PreconditionFailed` when somebody received it, `NotFound`."""
        await self._seam.run(Operation.QUEUE_DELETE_WATCH, self._driver.delete_message(WATCH_QUEUE, receipt))
