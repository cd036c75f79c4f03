"""What `infra/main.bicep` deploys, whichever of its switches are turned."""

from pathlib import Path
from typing import Any

import pycep
import pytest

from storage.driver import CONTAINERS, QUEUES, TABLES
from tests.support import azure_types
from tests.support.bicep import lint
from tests.support.bicep.template import Deployed, Deployment, TemplateError, deploy
from tests.support.bicep.tree import Module, Name, Object, Output, Param, walk

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
MAIN = INFRA / "main.bicep"
FILES = sorted(INFRA.rglob("*.bicep"))
OTHER_PARSER = pycep.BicepParser()

NEEDED = {"environmentName": "trial", "location": "westeurope"}
# Each with the value that turns its branch the other way than the default.
SWITCHES: dict[str, Any] = {
    "privateNetwork": True,
    "storagePrefix": "mine",
    "apiKeys": "me:0123",
    "apiKeysVaultUri": "https://vault.example.com/secrets/keys",
    "entraClientId": "11111111-2222-3333-4444-555555555555",
    "trustedUserHeader": "x-user",
    "corsOrigins": "https://example.com",
    "alwaysReadyHttp": 1,
    "alwaysReadyRuns": 2,
    "retentionDays": 0,
    "moreSettings": {"OPENAI_MODEL": "m"},
}
WEB = "Microsoft.Web/sites"
ACCOUNT = "Microsoft.Storage/storageAccounts"

# https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
ROLES = {
    "b7e6dc6d-f1e8-4753-8033-0f276bb0955b": "Storage Blob Data Owner",
    "974c5e8b-45b9-4653-ba55-5f855dd0fb88": "Storage Queue Data Contributor",
    "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3": "Storage Table Data Contributor",
    "3913510d-42f4-4e42-8a64-420c390055eb": "Monitoring Metrics Publisher",
}


def made(**parameters: Any) -> Deployment:
    return deploy(MAIN, NEEDED | parameters)


def only(deployment: Deployment, kind: str, name: str = "") -> Deployed:
    [found] = [each for each in deployment.of(kind) if each.name.endswith(name)]
    return found


def names(deployment: Deployment, kind: str) -> list[str]:
    return sorted(each.name.split("/")[-1] for each in deployment.of(kind))


# -- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_name_leads_somewhere_and_is_used(path: Path) -> None:
    assert lint.problems(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_another_parser_reads_it_too(path: Path) -> None:
    parsed = OTHER_PARSER.parse(text=path.read_text(encoding="utf-8"))
    read = lint.read(path)
    assert set(parsed.get("parameters", {})) == {each.name for each in read.of(Param)}
    assert set(parsed.get("outputs", {})) == {each.name for each in read.of(Output)}


def test_every_module_is_used_and_comes_from_here() -> None:
    used = {module.path for module in lint.read(MAIN).of(Module)}
    assert used == {f"modules/{path.name}" for path in (INFRA / "modules").iterdir()}


# -- the switches -----------------------------------------------------------------------------------------------------


def combinations() -> list[dict[str, Any]]:
    """No switch, each alone, all but each, and all."""
    alone = [{name: value} for name, value in SWITCHES.items()]
    without = [{other: SWITCHES[other] for other in SWITCHES if other != name} for name in SWITCHES]
    return [{}, *alone, *without, SWITCHES]


def test_every_switch_alone_and_among_others_can_be_deployed_and_is_of_azures_types() -> None:
    wrong: set[str] = set()
    for parameters in combinations():
        deployment = made(**parameters)
        for each in deployment.everything():
            if not each.existing:
                wrong.update(azure_types.problems(each.type, each.name, each.body))
        wrong.update(f"{kind}: {path}" for kind, path in deployment.all_reads() if not azure_types.has_path(kind, path))
    assert wrong == set()


def test_a_resource_type_is_asked_for_in_one_version_everywhere() -> None:
    versions: dict[str, set[str]] = {}
    for each in made(**SWITCHES).everything():
        versions.setdefault("/".join(each.type.split("/")[:2]), set()).add(each.version)
    assert {kind: found for kind, found in versions.items() if len(found) > 1} == {}


def test_what_exists_already_is_what_another_module_makes() -> None:
    everything = made(**SWITCHES).everything()
    created = {(each.type, each.name) for each in everything if not each.existing}
    subnet = "Microsoft.Network/virtualNetworks/subnets"
    assert [each for each in everything if each.existing and (each.type, each.name) not in created] == [
        each for each in everything if each.type == subnet
    ]
    [network] = [each for each in everything if each.type == "Microsoft.Network/virtualNetworks"]
    inside = {f"{network.name}/{each['name']}" for each in network.body["properties"]["subnets"]}
    assert {each.name for each in everything if each.type == subnet} == inside


@pytest.mark.parametrize(
    "parameters",
    [
        {"environmentName": ""},
        {"instanceMemoryMB": 1024},
        {"maximumInstanceCount": 10},
        {"httpConcurrency": 0},
        {"retentionDays": -1},
        {"storageRedundancy": "Premium_LRS"},
        {"privateNetwork": "yes"},
        {"nosuch": 1},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_a_parameter_out_of_bounds_is_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(TemplateError):
        made(**parameters)


# -- who may do what --------------------------------------------------------------------------------------------------


def test_the_identity_has_four_roles_each_on_one_resource() -> None:
    deployment = made()
    assignments = deployment.of("Microsoft.Authorization/roleAssignments")
    given = {each.body["properties"]["roleDefinitionId"].rpartition("/")[2]: each for each in assignments}
    assert {role: each.body["properties"]["description"] for role, each in given.items()} == ROLES
    assert {each.body["properties"]["principalType"] for each in assignments} == {"ServicePrincipal"}
    [principal] = {each.body["properties"]["principalId"] for each in assignments}
    assert "userAssignedIdentities" in principal
    on = {ROLES[role]: each.scope.type for role, each in given.items() if each.scope is not None}
    assert on.pop("Monitoring Metrics Publisher") == "Microsoft.Insights/components"
    assert set(on.values()) == {ACCOUNT}
    assert len({each.name for each in assignments}) == len(ROLES)


def test_neither_storage_nor_telemetry_takes_a_key() -> None:
    deployment = made()
    account = only(deployment, ACCOUNT).body["properties"]
    assert account["allowSharedKeyAccess"] is False
    assert account["allowBlobPublicAccess"] is False
    assert account["minimumTlsVersion"] == "TLS1_2"
    assert account["supportsHttpsTrafficOnly"] is True
    assert only(deployment, "Microsoft.Insights/components").body["properties"]["DisableLocalAuth"] is True
    policies = deployment.of(f"{WEB}/basicPublishingCredentialsPolicies")
    assert {each.name.split("/")[1]: each.body["properties"]["allow"] for each in policies} == {
        "ftp": False,
        "scm": False,
    }


def test_no_setting_and_no_output_holds_a_key_of_the_account() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    assert "listKeys" not in text
    assert "AccountKey" not in text
    assert "me:0123" not in str(made(apiKeys="me:0123").outputs)


def test_what_was_deleted_leaves_no_copy_in_the_account() -> None:
    blobs = only(made(), f"{ACCOUNT}/blobServices").body["properties"]
    assert blobs["isVersioningEnabled"] is False
    assert blobs["changeFeed"] == {"enabled": False}
    assert blobs["deleteRetentionPolicy"] == {"enabled": False}


# -- the function app -------------------------------------------------------------------------------------------------


def test_the_app_runs_python_on_flex_consumption_with_its_identity() -> None:
    deployment = made()
    plan, app = only(deployment, "Microsoft.Web/serverfarms"), only(deployment, WEB)
    assert plan.body["sku"] == {"name": "FC1", "tier": "FlexConsumption"}
    assert app.body["kind"] == "functionapp,linux"
    assert app.body["properties"]["serverFarmId"] == plan.id
    assert app.body["properties"]["httpsOnly"] is True
    config = app.body["properties"]["functionAppConfig"]
    python = (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    assert config["runtime"] == {"name": "python", "version": python}
    [identity] = app.body["identity"]["userAssignedIdentities"]
    assert config["deployment"]["storage"]["authentication"] == {
        "type": "UserAssignedIdentity",
        "userAssignedIdentityResourceId": identity,
    }
    assert config["deployment"]["storage"]["value"].endswith(">deployments")
    assert only(deployment, f"{ACCOUNT}/blobServices/containers", "/deployments")


def test_requests_and_runs_are_scaled_apart() -> None:
    scale = only(made(alwaysReadyHttp=1, alwaysReadyRuns=2), WEB).body["properties"]["functionAppConfig"]
    assert scale["scaleAndConcurrency"]["alwaysReady"] == [
        {"name": "http", "instanceCount": 1},
        {"name": f"function:{run_function()}", "instanceCount": 2},
    ]
    assert scale["scaleAndConcurrency"]["triggers"] == {"http": {"perInstanceConcurrency": 100}}


def run_function() -> str:
    """The name of the queue function that runs responses."""
    [line] = [
        line
        for line in (ROOT / "function_app.py").read_text(encoding="utf-8").splitlines()
        if line.startswith("RUN_FUNCTION = ")
    ]
    return line.split('"')[1]


def test_nothing_waits_unless_it_is_asked_to() -> None:
    config = only(made(), WEB).body["properties"]["functionAppConfig"]
    assert config["scaleAndConcurrency"]["alwaysReady"] == []


def test_the_platform_turns_callers_without_a_token_away_where_entra_is_chosen() -> None:
    client = SWITCHES["entraClientId"]
    settings = only(made(entraClientId=client), f"{WEB}/config", "/authsettingsV2").body["properties"]
    assert settings["platform"]["enabled"] is True
    assert settings["globalValidation"] == {
        "requireAuthentication": True,
        "unauthenticatedClientAction": "Return401",
        "excludedPaths": ["/healthz"],
    }
    assert settings["identityProviders"]["azureActiveDirectory"]["registration"]["clientId"] == client
    assert names(made(), f"{WEB}/config") == ["appsettings"]


def test_the_first_start_waits_for_the_roles() -> None:
    server = next(each for each in lint.read(MAIN).of(Module) if each.name == "server")
    assert isinstance(server.body, Object)
    assert "access" in {node.name for node in walk(server.body.get("dependsOn")) if isinstance(node, Name)}


# -- storage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "mine"])
def test_the_account_has_what_the_storage_layer_knows(prefix: str) -> None:
    deployment = made(storagePrefix=prefix)
    expected = {
        f"{ACCOUNT}/blobServices/containers": [*(f"{prefix}{each}" for each in CONTAINERS), "deployments"],
        f"{ACCOUNT}/tableServices/tables": [f"{prefix}{each}" for each in TABLES],
        f"{ACCOUNT}/queueServices/queues": [f"{prefix}{each}" for each in QUEUES],
    }
    assert {kind: names(deployment, kind) for kind in expected} == {
        kind: sorted(all_) for kind, all_ in expected.items()
    }


def test_the_backstop_comes_long_after_retention_and_takes_only_logs() -> None:
    policy = only(made(storagePrefix="mine", retentionDays=7), f"{ACCOUNT}/managementPolicies")
    [rule] = policy.body["properties"]["policy"]["rules"]
    assert rule["definition"] == {
        "actions": {"baseBlob": {"delete": {"daysAfterModificationGreaterThan": 37}}},
        "filters": {"blobTypes": ["appendBlob"], "prefixMatch": ["mineevents/"]},
    }


def test_what_is_kept_for_ever_has_no_backstop() -> None:
    assert made(retentionDays=0).of(f"{ACCOUNT}/managementPolicies") == []


# -- the private network ----------------------------------------------------------------------------------------------


def test_without_a_private_network_there_is_none() -> None:
    deployment = made()
    assert [each.type for each in deployment.everything() if each.type.startswith("Microsoft.Network/")] == []
    assert only(deployment, WEB).body["properties"]["virtualNetworkSubnetId"] is None
    assert only(deployment, ACCOUNT).body["properties"]["publicNetworkAccess"] == "Enabled"


def test_a_private_network_leads_to_every_service_of_the_account() -> None:
    deployment = made(privateNetwork=True)
    account = only(deployment, ACCOUNT)
    assert account.body["properties"]["publicNetworkAccess"] == "Disabled"
    assert account.body["properties"]["networkAcls"]["defaultAction"] == "Deny"
    services = {"blob", "queue", "table"}
    zones = {f"privatelink.{service}.core.windows.net" for service in services}
    assert {each.name for each in deployment.of("Microsoft.Network/privateDnsZones")} == zones
    links = deployment.of("Microsoft.Network/privateDnsZones/virtualNetworkLinks")
    assert {each.name.split("/")[0] for each in links} == zones
    connected = set()
    for endpoint in deployment.of("Microsoft.Network/privateEndpoints"):
        [connection] = endpoint.body["properties"]["privateLinkServiceConnections"]
        assert connection["properties"]["privateLinkServiceId"] == account.id
        [service] = connection["properties"]["groupIds"]
        group = only(deployment, "Microsoft.Network/privateEndpoints/privateDnsZoneGroups", f"{endpoint.name}/default")
        [record] = group.body["properties"]["privateDnsZoneConfigs"]
        assert record["properties"]["privateDnsZoneId"].endswith(f"/privatelink.{service}.core.windows.net")
        connected.add(service)
    assert connected == services


def test_the_app_joins_a_subnet_that_is_delegated_to_its_plan() -> None:
    deployment = made(privateNetwork=True)
    network = only(deployment, "Microsoft.Network/virtualNetworks")
    subnet = only(deployment, WEB).body["properties"]["virtualNetworkSubnetId"]
    assert subnet.startswith(f"{network.id}/subnets/")
    [joined] = [each for each in network.body["properties"]["subnets"] if subnet.endswith(f"/{each['name']}")]
    [delegation] = joined["properties"]["delegations"]
    assert delegation["properties"]["serviceName"] == "Microsoft.App/environments"
    # A subnet of this plan must not have an underscore in its name.
    assert "_" not in joined["name"]
