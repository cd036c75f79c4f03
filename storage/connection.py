"""Which storage account, and everything that works on it.

Settings, as the Functions host reads them too: `AzureWebJobsStorage`, a connection string
(`UseDevelopmentStorage=true` is the emulator on its default ports), or without it an identity:

- `AzureWebJobsStorage__accountName`, or instead `AzureWebJobsStorage__blobServiceUri`, `…__queueServiceUri` and
  `…__tableServiceUri`;
- `AzureWebJobsStorage__credential` = `managedidentity` (default: whatever azure-identity finds);
- `AzureWebJobsStorage__clientId` for a user-assigned identity.

`RESPONSES_STORAGE_PREFIX` goes in front of the name of every container, table and queue.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.chains import Chains
from storage.clock import Clock
from storage.driver import StorageDriver
from storage.expiry import Expiry
from storage.idempotency import IdempotencyKeys
from storage.ledger import WorkerLedgers
from storage.log import EventLog
from storage.memory import MemoryDriver
from storage.payloads import Payloads
from storage.queues import WatchQueue, WorkQueue
from storage.rows import ResponseRows
from storage.seam import Operation, Seam

SETTING = "AzureWebJobsStorage"
PREFIX_SETTING = "RESPONSES_STORAGE_PREFIX"

#: The emulator's published account.
DEVELOPMENT_STORAGE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1;"
    "QueueEndpoint=http://127.0.0.1:10001/devstoreaccount1;"
    "TableEndpoint=http://127.0.0.1:10002/devstoreaccount1;"
)

# The shortest name is "events", the strictest rules are those of tables: letters and digits, a letter first.
_PREFIX = re.compile(r"([a-z][a-z0-9]{0,30})?")


class ConnectionSettingsError(Exception):
    """The settings do not say which storage account to use."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"The setting {setting} {problem}.")
        self.setting = setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """The service addresses of an account that is reached with an identity."""

    blob: str
    queue: str
    table: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """A connection string, or endpoints and an identity. Timeouts are seconds for each try of a call or token."""

    connection_string: str = field(default="", repr=False)
    endpoints: Endpoints | None = None
    managed_identity: bool = False
    client_id: str | None = None
    prefix: str = ""
    #: Tries after the first one, and the seconds before the first of them; the wait doubles each time.
    retries: int = 2
    retry_delay: float = 0.2
    connection_timeout: float = 5.0
    read_timeout: float = 20.0
    #: For the blocking calls, which try once: their caller has to be back before the message becomes visible.
    blocking_timeout: float = 3.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "StorageSettings":
        """Read the settings. Raises `ConnectionSettingsError`, which names a setting and never shows a value."""
        prefix = environment.get(PREFIX_SETTING, "")
        if _PREFIX.fullmatch(prefix) is None:
            raise ConnectionSettingsError(
                PREFIX_SETTING, "must be up to 31 lower-case letters and digits, beginning with a letter"
            )
        text = environment.get(SETTING, "").strip()
        if text:
            return cls(connection_string=_connection_string(text), prefix=prefix)
        credential = environment.get(f"{SETTING}__credential", "").strip().lower()
        if credential not in ("", "managedidentity"):
            raise ConnectionSettingsError(f"{SETTING}__credential", "can only be 'managedidentity'")
        return cls(
            endpoints=_endpoints(environment),
            managed_identity=credential == "managedidentity",
            client_id=environment.get(f"{SETTING}__clientId", "").strip() or None,
            prefix=prefix,
        )

    def name(self, logical: str) -> str:
        """The name in the account of a container, table or queue."""
        return f"{self.prefix}{logical}"


def _connection_string(text: str) -> str:
    parts = [part.split("=", 1) for part in text.split(";") if part.strip()]
    if any(len(part) != 2 for part in parts):
        raise ConnectionSettingsError(SETTING, "is not a connection string")
    values = {name.strip().lower(): value.strip() for name, value in parts}
    if values.get("usedevelopmentstorage", "").lower() == "true":
        return DEVELOPMENT_STORAGE
    if "sharedaccesssignature" not in values and not (values.get("accountname") and values.get("accountkey")):
        raise ConnectionSettingsError(SETTING, "has neither AccountName with AccountKey nor a SharedAccessSignature")
    if not values.get("accountname") and not all(f"{each}endpoint" in values for each in ("blob", "queue", "table")):
        raise ConnectionSettingsError(
            SETTING, "has neither an AccountName nor BlobEndpoint, QueueEndpoint, TableEndpoint"
        )
    return text


def _endpoints(environment: Mapping[str, str]) -> Endpoints:
    account = environment.get(f"{SETTING}__accountName", "").strip()
    found = {
        service: environment.get(f"{SETTING}__{service}ServiceUri", "").strip()
        for service in ("blob", "queue", "table")
    }
    if not account and not any(found.values()):
        raise ConnectionSettingsError(SETTING, f"is not set, and neither is {SETTING}__accountName")
    for service, uri in found.items():
        if not uri and not account:
            raise ConnectionSettingsError(f"{SETTING}__{service}ServiceUri", "is not set")
        if uri and not uri.startswith("https://"):
            raise ConnectionSettingsError(f"{SETTING}__{service}ServiceUri", "is not an https address")
        found[service] = uri or f"https://{account}.{service}.core.windows.net"
    return Endpoints(blob=found["blob"], queue=found["queue"], table=found["table"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A storage account and the nouns over it. Close it with `aclose`."""

    driver: StorageDriver
    seam: Seam
    log: EventLog
    rows: ResponseRows
    chains: Chains
    payloads: Payloads
    ledger: WorkerLedgers
    keys: IdempotencyKeys
    expiry: Expiry
    work: WorkQueue
    watch: WatchQueue

    @classmethod
    def over(cls, driver: StorageDriver, seam: Seam | None = None) -> "Storage":
        """The nouns over any driver."""
        passed = seam if seam is not None else Seam()
        return cls(
            driver=driver,
            seam=passed,
            log=EventLog(driver, passed),
            rows=ResponseRows(driver, passed),
            chains=Chains(driver, passed),
            payloads=Payloads(driver, passed),
            ledger=WorkerLedgers(driver, passed),
            keys=IdempotencyKeys(driver, passed),
            expiry=Expiry(driver, passed),
            work=WorkQueue(driver, passed),
            watch=WatchQueue(driver, passed),
        )

    async def ping(self) -> None:
        """One cheap call. Raises `StorageError` when storage cannot be used."""
        await self.seam.run(Operation.PING, self.driver.ping())

    async def aclose(self) -> None:
        """Close all connections; closing twice is fine."""
        await self.driver.aclose()


def open_storage(settings: StorageSettings) -> Storage:
    """Storage in Azure or its emulator. Connects on first use, on the event loop of that use."""
    # Only here: the SDKs take a second to import, and simulations need none of them.
    from storage.azure import AzureDriver

    return Storage.over(AzureDriver(settings))


def memory_storage(clock: Clock) -> Storage:
    """Storage that lives in this process, by that clock."""
    return Storage.over(MemoryDriver(clock))
