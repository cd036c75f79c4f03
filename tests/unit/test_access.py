"""Who may come in: keys, Entra ID, the developer's own machine, and nobody where that is not clear."""

import base64
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.requests import Request

from api.access import Closed, OpenLocally, access_from, announce, is_local, is_loopback
from api.cors import Cors, NoOrigin
from api.entra import EntraId
from api.incoming import NotAdmitted, admit, principal_of
from api.keys import ApiKeys, Misconfigured, hash_of
from api.settings import ApiSettings
from protocol.errors import AccessNotConfigured, ApiError, AuthenticationFailed, Forbidden
from resilience.options import SettingError
from scripts import new_key

KEY = "rr-a-key"
LOCAL = {"AZURE_FUNCTIONS_ENVIRONMENT": "Development", "WEBSITE_HOSTNAME": "localhost:7071"}
ON_AZURE = {"WEBSITE_HOSTNAME": "app.azurewebsites.net", "WEBSITE_SITE_NAME": "app", "WEBSITE_INSTANCE_ID": "i1"}
TENANT, OBJECT = "11111111-2222-3333-4444-555555555555", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


def request(*headers: tuple[str, str]) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "GET", "path": "/v1/responses", "query_string": b"", "headers": raw})


def bearer(key: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {key}")


# -- keys -------------------------------------------------------------------------------------------------------------


def test_each_key_is_its_principal_and_a_principal_may_have_several() -> None:
    keys = ApiKeys.parse(f"ann:{hash_of('k1')}, bob:{hash_of('k2')}\nann:{hash_of('k3').upper()}\n")
    assert [keys.principal_of(request(bearer(key))) for key in ("k1", "k2", "k3")] == ["key:ann", "key:bob", "key:ann"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    keys = ApiKeys.parse(f"ann:{hash_of(KEY)}")
    assert keys.principal_of(request(("authorization", f"{scheme}  {KEY} "))) == "key:ann"


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", KEY),),
        (("authorization", f"Basic {KEY}"),),
        (bearer(f"{KEY}x"),),
        (bearer(KEY[:-1]),),
        (bearer(hash_of(KEY)),),
        (bearer("é"),),
        (bearer(KEY), bearer(KEY)),
        (bearer("wrong"), bearer(KEY)),
        (("api-key", KEY),),
        (("x-ms-client-principal", "anything"),),
    ],
)
def test_whoever_has_no_key_of_ours_is_refused(headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        ApiKeys.parse(f"ann:{hash_of(KEY)}").principal_of(request(*headers))
    assert (caught.value.status, caught.value.type, caught.value.code) == (
        401,
        "invalid_request_error",
        "invalid_api_key",
    )
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}
    assert KEY not in caught.value.message


def test_every_entry_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def compare(known: str, given: str) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr("hmac.compare_digest", compare)
    keys = ApiKeys.parse(" ".join(f"n{number}:{hash_of(f'k{number}')}" for number in range(5)))
    for key in ("k0", "k4"):
        compared.clear()
        assert keys.principal_of(request(bearer(key))) == f"key:n{key[1]}"
        assert len(compared) == 5
    compared.clear()
    with pytest.raises(AuthenticationFailed):
        keys.principal_of(request(bearer("other")))
    assert len(compared) == 5


@pytest.mark.parametrize(
    "text",
    [
        "ann",
        f"ann:{KEY}",
        f"ann:plain:{KEY}",
        f":{hash_of(KEY)}",
        f"ann/x:{hash_of(KEY)}",
        f"ann:{hash_of(KEY)[:-1]}",
        f"ann:{hash_of(KEY)}0",
        f"ann:{hash_of(KEY)},bob",
        f"ann:{hash_of(KEY)},bob:{hash_of(KEY)}",
        "@Microsoft.KeyVault(SecretUri=https://vault/secrets/keys)",
        ",",
        f"{'a' * 65}:{hash_of(KEY)}",
    ],
)
def test_keys_that_cannot_be_read_close_the_server_and_are_not_shown(text: str) -> None:
    closed = access_from({**LOCAL, "RESPONSES_API_KEYS": text})
    assert isinstance(closed, Closed)
    with pytest.raises(AccessNotConfigured) as caught:
        closed.principal_of(request(bearer(KEY)))
    assert caught.value.status == 503
    assert "RESPONSES_API_KEYS" in caught.value.message
    assert KEY not in caught.value.message
    assert hash_of(KEY) not in caught.value.message
    assert "vault" not in caught.value.message


def test_a_gateway_names_its_users() -> None:
    keys = ApiKeys.parse(f"gw:{hash_of('k1')},gw2:{hash_of('k2')}", "X-User")
    assert keys.principal_of(request(bearer("k1"), ("x-user", "ann"))) == "key:gw/user:ann"
    assert keys.principal_of(request(bearer("k2"), ("x-user", "ann"))) == "key:gw2/user:ann"


@pytest.mark.parametrize("users", [(), ("",), (" ",), ("ann", "bob"), ("ann", "ann"), ("x" * 257,)])
def test_a_gateway_that_names_not_exactly_one_user_is_refused(users: tuple[str, ...]) -> None:
    keys = ApiKeys.parse(f"gw:{hash_of(KEY)}", "X-User")
    with pytest.raises(Forbidden, match="X-User"):
        keys.principal_of(request(bearer(KEY), *(("x-user", user) for user in users)))


def test_the_trusted_header_is_nothing_without_a_key() -> None:
    keys = ApiKeys.parse(f"gw:{hash_of(KEY)}", "X-User")
    with pytest.raises(AuthenticationFailed):
        keys.principal_of(request(("x-user", "ann")))
    assert ApiKeys.parse(f"gw:{hash_of(KEY)}").principal_of(request(bearer(KEY), ("x-user", "ann"))) == "key:gw"


@pytest.mark.parametrize("name", ["Authorization", "host", "x user", "x:user", "cookie", "é"])
def test_a_header_that_cannot_name_a_user_closes_the_server(name: str) -> None:
    with pytest.raises(Misconfigured, match="RESPONSES_TRUSTED_USER_HEADER"):
        ApiKeys.parse(f"gw:{hash_of(KEY)}", name)


# -- Entra ID ---------------------------------------------------------------------------------------------------------


def client_principal(provider: Any = "aad", claims: Any = None) -> tuple[str, str]:
    if claims is None:
        claims = [{"typ": "tid", "val": TENANT}, {"typ": "oid", "val": OBJECT}, {"typ": "name", "val": "Ann"}]
    text = json.dumps({"auth_typ": provider, "claims": claims, "name_typ": "name", "role_typ": "roles"})
    return ("X-MS-CLIENT-PRINCIPAL", base64.b64encode(text.encode()).decode())


LONG = "http://schemas.microsoft.com/identity/claims/"


@pytest.mark.parametrize(
    "claims",
    [
        None,
        [{"typ": f"{LONG}tenantid", "val": TENANT}, {"typ": f"{LONG}objectidentifier", "val": OBJECT.upper()}],
        [{"typ": "tid", "val": TENANT}, {"typ": f"{LONG}tenantid", "val": TENANT}, {"typ": "oid", "val": OBJECT}],
    ],
)
def test_tenant_and_object_id_are_the_principal(claims: Any) -> None:
    assert EntraId().principal_of(request(client_principal(claims=claims))) == f"entra:{TENANT}/{OBJECT}"


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("x-ms-client-principal", ""),),
        (("x-ms-client-principal", "%%%"),),
        (("x-ms-client-principal", base64.b64encode(b"no json").decode()),),
        (("x-ms-client-principal", base64.b64encode(b"[]").decode()),),
        (("x-ms-client-principal-id", OBJECT),),
        (bearer(KEY),),
        (client_principal("google"),),
        (client_principal(None),),
        (client_principal(claims=[]),),
        (client_principal(claims={"tid": TENANT, "oid": OBJECT}),),
        (client_principal(claims=["tid", {"typ": "tid"}]),),
        (client_principal(claims=[{"typ": "oid", "val": OBJECT}]),),
        (client_principal(claims=[{"typ": "tid", "val": TENANT}]),),
        (client_principal(claims=[{"typ": "tid", "val": TENANT}, {"typ": "oid", "val": "Ann"}]),),
        (
            client_principal(
                claims=[
                    {"typ": "tid", "val": TENANT},
                    {"typ": f"{LONG}tenantid", "val": OBJECT},
                    {"typ": "oid", "val": OBJECT},
                ]
            ),
        ),
        (client_principal(), client_principal()),
    ],
)
def test_whom_the_platform_does_not_name_is_refused(headers: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(AuthenticationFailed):
        EntraId().principal_of(request(*headers))


# -- which of them ----------------------------------------------------------------------------------------------------

KEYS = {"RESPONSES_API_KEYS": f"ann:{hash_of(KEY)}"}
ENTRA = {"RESPONSES_AUTH": "entra", "WEBSITE_AUTH_ENABLED": "True"}


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        (LOCAL, OpenLocally),
        ({**LOCAL, "RESPONSES_API_KEYS": " "}, OpenLocally),
        ({**LOCAL, **KEYS}, ApiKeys),
        ({**ON_AZURE, **KEYS}, ApiKeys),
        ({**KEYS, "RESPONSES_AUTH": "Keys"}, ApiKeys),
        ({**ON_AZURE, **ENTRA}, EntraId),
        ({**LOCAL, **ENTRA}, EntraId),
    ],
)
def test_the_settings_decide_who_is_asked(environment: Mapping[str, str], kind: type[object]) -> None:
    assert type(access_from(environment)) is kind


@pytest.mark.parametrize(
    ("environment", "setting"),
    [
        ({}, "RESPONSES_API_KEYS"),
        (ON_AZURE, "RESPONSES_API_KEYS"),
        ({**ON_AZURE, "AZURE_FUNCTIONS_ENVIRONMENT": "Development"}, "RESPONSES_API_KEYS"),
        ({**LOCAL, "RESPONSES_AUTH": "keys"}, "RESPONSES_API_KEYS"),
        ({**LOCAL, "RESPONSES_AUTH": "none"}, "RESPONSES_AUTH"),
        ({**LOCAL, "RESPONSES_AUTH": "entra"}, "RESPONSES_AUTH"),
        ({**ON_AZURE, "RESPONSES_AUTH": "entra", "WEBSITE_AUTH_ENABLED": "False"}, "RESPONSES_AUTH"),
        ({**ON_AZURE, "WEBSITE_AUTH_ENABLED": "True"}, "RESPONSES_API_KEYS"),
        ({**ENTRA, **KEYS}, "RESPONSES_AUTH"),
        ({**ENTRA, "RESPONSES_TRUSTED_USER_HEADER": "X-User"}, "RESPONSES_AUTH"),
        ({**LOCAL, "RESPONSES_TRUSTED_USER_HEADER": "X-User"}, "RESPONSES_TRUSTED_USER_HEADER"),
        ({**KEYS, "RESPONSES_TRUSTED_USER_HEADER": "host"}, "RESPONSES_TRUSTED_USER_HEADER"),
    ],
)
def test_what_is_not_clear_is_closed_and_names_the_setting(environment: Mapping[str, str], setting: str) -> None:
    access = access_from(environment)
    assert isinstance(access, Closed)
    assert access.setting == setting
    with pytest.raises(AccessNotConfigured, match=setting):
        access.principal_of(request(bearer(KEY), client_principal(), ("host", "localhost:7071")))


@pytest.mark.parametrize(
    "change",
    [
        {"AZURE_FUNCTIONS_ENVIRONMENT": "Production"},
        {"AZURE_FUNCTIONS_ENVIRONMENT": ""},
        {"WEBSITE_HOSTNAME": ""},
        {"WEBSITE_HOSTNAME": "app.azurewebsites.net"},
        {"WEBSITE_HOSTNAME": "0.0.0.0:7071"},
        {"WEBSITE_HOSTNAME": "localhost.example.com:7071"},
        {"WEBSITE_INSTANCE_ID": "i1"},
        {"WEBSITE_SITE_NAME": "app"},
        {"WEBSITE_POD_NAME": "p"},
        {"CONTAINER_APP_NAME": "c"},
    ],
)
def test_a_host_is_local_only_if_everything_says_so(change: Mapping[str, str]) -> None:
    assert is_local(LOCAL)
    assert not is_local({**LOCAL, **change})


@pytest.mark.parametrize(
    "name", ["localhost", "LOCALHOST:7071", "127.0.0.1:80", "127.9.9.9", "[::1]:7071", "a.localhost"]
)
def test_names_of_this_machine_are_recognised(name: str) -> None:
    assert is_loopback(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "example.com", "localhost.example.com", "127.0.0.1.example.com", "0.0.0.0", "10.0.0.1", "[::]", "["),
        *("null", "user@example.com", "localhost@example.com", "user@localhost", "notlocalhost"),
    ],
)
def test_other_names_are_not(name: str) -> None:
    assert not is_loopback(name)


def test_an_open_server_is_open_to_its_machine() -> None:
    access = OpenLocally()
    for headers in [(), (("host", "127.0.0.1:7071"), bearer("any")), (("origin", "http://localhost:3000"),)]:
        assert access.principal_of(request(*headers)) == "local"


@pytest.mark.parametrize(
    "header",
    [
        ("host", "rebound.example.com:7071"),
        ("host", "192.168.0.7:7071"),
        ("origin", "https://example.com"),
        ("origin", "null"),
        ("origin", "file://"),
    ],
)
def test_an_open_server_is_closed_to_foreign_names_and_pages(header: tuple[str, str]) -> None:
    with pytest.raises(Forbidden):
        OpenLocally().principal_of(request(header))


def test_pages_that_are_named_may_come_in_to_an_open_server_and_any_page_may_not() -> None:
    page = ("origin", "https://example.com")
    assert access_from(LOCAL, {"https://example.com"}).principal_of(request(page)) == "local"
    with pytest.raises(Forbidden):
        access_from(LOCAL, {"*"}).principal_of(request(page))


def test_only_what_an_operator_should_know_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    for environment in (LOCAL, ON_AZURE, KEYS, {**ON_AZURE, **ENTRA}):
        announce(access_from(environment))
    assert [(record.levelno, record.getMessage().partition(":")[0]) for record in caplog.records] == [
        (logging.WARNING, "Nobody has to authenticate"),
        (logging.WARNING, "This server answers nobody"),
    ]


def test_nobody_sends_a_request_that_was_not_let_in() -> None:
    asked = request(bearer(KEY))
    with pytest.raises(NotAdmitted):
        principal_of(asked)
    admit(asked, ApiKeys.parse(f"ann:{hash_of(KEY)}"))
    assert principal_of(asked) == "key:ann"


def test_no_two_ways_in_give_the_same_principal() -> None:
    gateway = ApiKeys.parse(f"local:{hash_of('k1')}", "X-User")
    names = [
        OpenLocally().principal_of(request()),
        ApiKeys.parse(f"local:{hash_of('k1')}").principal_of(request(bearer("k1"))),
        gateway.principal_of(request(bearer("k1"), ("x-user", "local"))),
        gateway.principal_of(request(bearer("k1"), ("x-user", "local/user:local"))),
        EntraId().principal_of(request(client_principal())),
    ]
    assert len(set(names)) == len(names)


# -- settings of the HTTP side ----------------------------------------------------------------------------------------


def test_limits_come_from_the_environment_and_may_be_off() -> None:
    names = {"MAX_BODY_BYTES": 1, "MAX_INPUT_ITEMS": 2, "MAX_RUNS": 3, "MAX_RUNS_PER_TENANT": 0, "MAX_QUEUE_DEPTH": 5}
    found = ApiSettings.from_environment({f"RESPONSES_{name}": str(number) for name, number in names.items()})
    assert {name: getattr(found, name.lower()) for name in names} == names
    assert isinstance(found.access, Closed)


@pytest.mark.parametrize("name", ["MAX_INPUT_ITEMS", "MAX_RUNS", "MAX_RUNS_PER_TENANT", "MAX_QUEUE_DEPTH"])
@pytest.mark.parametrize("text", ["", "-1", "1.5", "many", "²"])
def test_a_limit_that_is_no_number_is_refused(name: str, text: str) -> None:
    with pytest.raises(SettingError, match=f"RESPONSES_{name}"):
        ApiSettings.from_environment({f"RESPONSES_{name}": text})


# -- CORS -------------------------------------------------------------------------------------------------------------

PAGE = ("origin", "https://app.example.com")


def cors(text: str) -> Cors:
    return Cors.from_environment({"RESPONSES_CORS_ORIGINS": text})


def test_without_the_setting_no_answer_speaks_of_origins() -> None:
    assert not cors("").is_on
    assert cors(" ").headers(request(PAGE)) == {}
    with pytest.raises(Forbidden):
        cors("").preflight_headers(request(PAGE))


def test_named_pages_may_read_and_others_may_not() -> None:
    allowed = cors("https://APP.example.com/, http://localhost:3000")
    headers = allowed.headers(request(PAGE))
    assert (headers["Access-Control-Allow-Origin"], headers["Vary"]) == (PAGE[1], "Origin")
    for other in [("origin", "https://app.example.com.evil.com"), ("origin", "http://app.example.com"), ("x", "y")]:
        assert allowed.headers(request(other)) == {"Vary": "Origin"}
        with pytest.raises(Forbidden):
            allowed.preflight_headers(request(other))


@pytest.mark.parametrize("text", ["*", "https://app.example.com"])
def test_credentials_are_never_allowed(text: str) -> None:
    asked = request(PAGE, ("access-control-request-headers", "authorization,x-stainless-os"))
    headers = {**cors(text).headers(asked), **cors(text).preflight_headers(asked)}
    assert headers["Access-Control-Allow-Headers"] == "authorization,x-stainless-os"
    assert headers["Access-Control-Allow-Origin"] == ("*" if text == "*" else PAGE[1])
    assert "access-control-allow-credentials" not in {name.lower() for name in headers}


@pytest.mark.parametrize("text", ["example.com", "https://a.com/path", "*, https://a.com", "https://*.a.com", "null"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(NoOrigin, match="RESPONSES_CORS_ORIGINS"):
        cors(text)


# -- new keys ---------------------------------------------------------------------------------------------------------


def test_a_new_key_opens_what_its_entry_is_given_to(capsys: pytest.CaptureFixture[str]) -> None:
    made = set()
    for _ in range(2):
        assert new_key.main(["ann"]) == 0
        key, entry = re.findall(r"^  (\S+)$", capsys.readouterr().out, re.MULTILINE)
        assert ApiKeys.parse(entry).principal_of(request(bearer(key))) == "key:ann"
        assert key not in entry
        assert len(key) >= 43
        made.add(key)
    assert len(made) == 2


@pytest.mark.parametrize("name", ["", "a:b", "a,b", "a b", "é", "a" * 65])
def test_a_name_that_the_setting_cannot_hold_gets_no_key(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert new_key.main([name]) == 2
    assert capsys.readouterr().out == ""


def test_refusals_are_errors_of_the_api() -> None:
    assert issubclass(AuthenticationFailed, ApiError)
    assert issubclass(AccessNotConfigured, ApiError)
