import pytest
from azure.identity.aio import DefaultAzureCredential, ManagedIdentityCredential

from storage.azure_clients import AzureClients
from storage.azure_identity import Tokens
from storage.clock import ManualClock, SystemClock
from storage.connection import (
    DEVELOPMENT_STORAGE,
    ConnectionSettingsError,
    Endpoints,
    StorageSettings,
    memory_storage,
    open_storage,
)
from storage.memory import MemoryDriver
from tests.support.azurite import AzuriteServer

READ = StorageSettings.from_environment
KEY = "c2VjcmV0LWtleQ=="
TEXT = f"DefaultEndpointsProtocol=https;AccountName=acc;AccountKey={KEY};EndpointSuffix=core.windows.net"


def test_a_connection_string_is_taken_as_it_is() -> None:
    settings = READ({"AzureWebJobsStorage": TEXT})
    assert settings.connection_string == TEXT
    assert settings.endpoints is None
    assert settings.prefix == ""


@pytest.mark.parametrize(
    "text", ["UseDevelopmentStorage=true", "UseDevelopmentStorage=True;", " usedevelopmentstorage=true "]
)
def test_development_storage_is_expanded(text: str) -> None:
    assert READ({"AzureWebJobsStorage": text}).connection_string == DEVELOPMENT_STORAGE


def test_the_prefix_goes_in_front_of_every_name() -> None:
    settings = READ({"AzureWebJobsStorage": TEXT, "RESPONSES_STORAGE_PREFIX": "t1"})
    assert settings.name("events") == "t1events"
    assert READ({"AzureWebJobsStorage": TEXT}).name("events") == "events"


@pytest.mark.parametrize("prefix", ["Upper", "1st", "a-b", "ä", "x" * 32])
def test_a_prefix_that_cannot_be_part_of_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(ConnectionSettingsError) as caught:
        READ({"AzureWebJobsStorage": TEXT, "RESPONSES_STORAGE_PREFIX": prefix})
    assert caught.value.setting == "RESPONSES_STORAGE_PREFIX"


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        f"AccountKey={KEY}",
        "AccountName=acc",
        "AccountName=acc;AccountKey=",
        "UseDevelopmentStorage=false",
        f"SharedAccessSignature=sv={KEY}",
        f"https://acc.blob.core.windows.net/?{KEY}",
    ],
)
def test_a_broken_connection_string_is_named_and_not_shown(text: str) -> None:
    with pytest.raises(ConnectionSettingsError, match=r"^The setting AzureWebJobsStorage ") as caught:
        READ({"AzureWebJobsStorage": text})
    assert KEY not in str(caught.value)


def test_no_setting_at_all_is_named() -> None:
    with pytest.raises(ConnectionSettingsError, match="AzureWebJobsStorage is not set") as caught:
        READ({})
    assert caught.value.setting == "AzureWebJobsStorage"


def test_settings_do_not_show_the_key() -> None:
    assert KEY not in repr(READ({"AzureWebJobsStorage": TEXT}))


def test_an_account_name_gives_the_endpoints() -> None:
    settings = READ({"AzureWebJobsStorage__accountName": "acc"})
    assert settings.endpoints == Endpoints(
        blob="https://acc.blob.core.windows.net",
        queue="https://acc.queue.core.windows.net",
        table="https://acc.table.core.windows.net",
    )
    assert not settings.managed_identity


IDENTITY = {
    "AzureWebJobsStorage__blobServiceUri": "https://a.blob.example",
    "AzureWebJobsStorage__queueServiceUri": "https://a.queue.example",
    "AzureWebJobsStorage__tableServiceUri": "https://a.table.example",
    "AzureWebJobsStorage__credential": "managedidentity",
    "AzureWebJobsStorage__clientId": "client",
}


def test_service_addresses_and_identity_are_read() -> None:
    settings = READ(IDENTITY)
    assert settings.endpoints == Endpoints(
        blob="https://a.blob.example", queue="https://a.queue.example", table="https://a.table.example"
    )
    assert settings.managed_identity
    assert settings.client_id == "client"


def test_one_service_address_can_differ_from_the_account() -> None:
    settings = READ({"AzureWebJobsStorage__accountName": "acc", "AzureWebJobsStorage__blobServiceUri": "https://b"})
    assert settings.endpoints is not None
    assert settings.endpoints.blob == "https://b"
    assert settings.endpoints.queue == "https://acc.queue.core.windows.net"


@pytest.mark.parametrize("service", ["blob", "queue", "table"])
def test_a_missing_service_address_is_named(service: str) -> None:
    setting = f"AzureWebJobsStorage__{service}ServiceUri"
    with pytest.raises(ConnectionSettingsError) as caught:
        READ({name: value for name, value in IDENTITY.items() if name != setting})
    assert caught.value.setting == setting


@pytest.mark.parametrize(
    ("setting", "value"),
    [("AzureWebJobsStorage__credential", "password"), ("AzureWebJobsStorage__blobServiceUri", "http://plain")],
)
def test_an_unusable_identity_setting_is_named(setting: str, value: str) -> None:
    with pytest.raises(ConnectionSettingsError) as caught:
        READ({**IDENTITY, setting: value})
    assert caught.value.setting == setting
    assert value not in str(caught.value)


@pytest.mark.parametrize("managed", [True, False])
async def test_clients_with_an_identity_use_its_credential(managed: bool) -> None:
    environment = IDENTITY if managed else {k: v for k, v in IDENTITY.items() if not k.endswith("credential")}
    clients = AzureClients(READ(environment), Tokens())
    try:
        assert clients.blob_service.url == "https://a.blob.example/"
        assert clients._credential is not None
        source = clients._credential._source
        assert isinstance(source, ManagedIdentityCredential if managed else DefaultAzureCredential)
        assert clients.table("responses").url == "https://a.table.example"
    finally:
        await clients.aclose()


async def test_storage_answers_a_ping(azurite: AzuriteServer) -> None:
    with azurite.namespace() as environment:
        storage = open_storage(READ(environment))
        try:
            await storage.ping()
            assert storage.seam.counts == {"storage.ping": 1}
        finally:
            await storage.aclose()


async def test_two_prefixes_do_not_see_each_other(azurite: AzuriteServer) -> None:
    with azurite.namespace() as one, azurite.namespace() as other:
        first, second = open_storage(READ(one)), open_storage(READ(other))
        try:
            await first.payloads.put("p", "r", "request", b"x" * 100_000)
            await first.work.send_start("t", "r")
            assert await second.driver.list_blobs("payloads", "") == []
            assert await second.driver.receive_message("responses-work", visibility=1) is None
        finally:
            await first.aclose()
            await second.aclose()


async def test_memory_storage_keeps_its_state_by_the_given_clock() -> None:
    clock = ManualClock(100.0)
    storage = memory_storage(clock)
    assert (await storage.ledger.service_time()).timestamp() == 100.0
    clock.advance(5)
    assert (await storage.ledger.service_time()).timestamp() == 105.0
    assert isinstance(storage.driver, MemoryDriver)
    await storage.ping()
    await storage.aclose()


def test_clocks_do_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        ManualClock().advance(-1)
    assert SystemClock().now() > 1_700_000_000
