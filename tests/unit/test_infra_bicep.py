"""The reader of Bicep and the types of Azure: each finds the mistakes it is there for."""

from pathlib import Path

import pytest

from tests.support import azure_types
from tests.support.bicep import lint
from tests.support.bicep.syntax import BicepSyntaxError, parse
from tests.support.bicep.template import Deployment, TemplateError, Unknown, deploy
from tests.support.bicep.tree import Binary, Choice, Output, Param, Var

STORAGE = "Microsoft.Storage/storageAccounts@2024-01-01"


def file(folder: Path, text: str, name: str = "main.bicep") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def outcome(folder: Path, expression: str, before: str = "") -> object:
    """What an expression comes to."""
    return deploy(file(folder, f"{before}\nvar it = {expression}\noutput it array = [it]\n"), {}).outputs["it"][0]


# -- syntax -----------------------------------------------------------------------------------------------------------


def test_operators_bind_as_the_language_says() -> None:
    [value] = parse("var a = b == 1 && !c || d > 2 + 3 * 4 ? e : f\n").of(Var)
    assert isinstance(value.value, Choice)
    condition = value.value.condition
    assert isinstance(condition, Binary)
    assert condition.operator == "||"
    assert isinstance(condition.left, Binary)
    assert condition.left.operator == "&&"


def test_decorators_and_kinds_of_statements_are_read() -> None:
    read = parse(
        "targetScope = 'subscription'\n@description('x')\n@minValue(3)\nparam a int = 4 // four\noutput b int = a\n"
    )
    assert read.scope == "subscription"
    [param], [output] = read.of(Param), read.of(Output)
    assert (param.name, param.type, set(param.decorators)) == ("a", "int", {"description", "minValue"})
    assert (output.name, output.line) == ("b", 5)


@pytest.mark.parametrize(
    "text",
    [
        "param a\n",
        "param a int param b int\n",
        "var a = {\n  b: 1 c: 2\n}\n",
        "var a = {\n  b: 1\n  b: 2\n}\n",
        "var a = [\n  1 2\n]\n",
        "var a = 'no end\n",
        "var a = '${b'\n",
        "var a = '\\d'\n",
        'var a = "b"\n',
        "var a = (1\n",
        "var a = 1 +\n",
        "var a = b ? c\n",
        "resource a 'b' = 1\n",
        "resource a '${b}' = {\n}\n",
        "metadata a = 1\n",
        "var a = {\n",
    ],
)
def test_what_is_no_bicep_is_refused(text: str) -> None:
    with pytest.raises(BicepSyntaxError):
        parse(text)


def test_a_mistake_is_told_with_its_line() -> None:
    with pytest.raises(BicepSyntaxError) as caught:
        parse("var a = 1\n/* two\nlines */\nvar b = = 2\n")
    assert caught.value.line == 4


# -- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 - 1", 2),
        ("'a${1 > 0 ? 'b${'c'}' : 'd'}'", "abc"),
        ("union({ a: 1 }, { b: 2 }, { a: 3 })", {"a": 3, "b": 2}),
        ("filter([1, 2, 3], each => each > 1)", [2, 3]),
        ("[for (each, at) in ['x', 'y']: '${at}${each}']", ["0x", "1y"]),
        ("{ '${toLower('A')}': null }", {"a": None}),
        ("empty('') && !empty([1])", True),
        ("[{ a: 'b' }][0].a", "b"),
    ],
)
def test_expressions_come_to_what_the_platform_makes_of_them(tmp_path: Path, expression: str, expected: object) -> None:
    assert outcome(tmp_path, expression) == expected


ACCOUNT = f"""
param name string = 'one'
resource account '{STORAGE}' = {{
  name: name
  properties: {{
    accessTier: 'Hot'
  }}

  resource blobs 'blobServices' = {{
    name: 'default'
  }}
}}
"""


def test_a_nested_resource_stands_below_its_parent(tmp_path: Path) -> None:
    made = deploy(file(tmp_path, ACCOUNT + "output id string = account::blobs.id\n"), {"name": "two"})
    assert [each.name for each in made.of("Microsoft.Storage/storageAccounts/blobServices")] == ["two/default"]
    assert made.outputs["id"].endswith("/storageAccounts/two/blobServices/default")


def test_what_only_the_platform_knows_goes_into_texts_and_is_noted(tmp_path: Path) -> None:
    text = ACCOUNT + "output url string = 'x${account.properties.primaryEndpoints.blob}y'\n"
    made = deploy(file(tmp_path, text), {})
    assert isinstance(made.outputs["url"], Unknown)
    assert made.all_reads() == {("Microsoft.Storage/storageAccounts", "properties.primaryEndpoints.blob")}


@pytest.mark.parametrize(
    "text",
    [
        "param a int\n",
        "param a int = 'b'\n",
        "param a bool = 1\n",
        "@allowed(['x'])\nparam a string = 'y'\n",
        "@minValue(3)\nparam a int = 2\n",
        "@maxLength(1)\nparam a string = 'xy'\n",
        "var a = b\n",
        "var a = b\nvar b = a\n",
        "var a = nosuch(1)\n",
        "var a = empty()\n",
        "var a = { b: 1 }.c\n",
        "var a = [1][1]\n",
        "var a = 1 ? 2 : 3\n",
        "output a int = 'b'\n",
        f"resource a '{STORAGE}' = {{\n}}\n",
        f"resource a '{STORAGE}' = {{\n  name: 'b/c'\n}}\n",
        f"resource a '{STORAGE}' = {{\n  name: 'x'\n}}\nresource b '{STORAGE}' = {{\n  name: 'x'\n}}\n",
        f"resource a '{STORAGE}' = {{\n  name: 'x'\n  kind: b.id\n}}\n"
        f"resource b '{STORAGE}' = {{\n  name: 'y'\n  kind: a.id\n}}\n",
        ACCOUNT + f"resource b '{STORAGE}' = {{\n  name: account.properties.x\n}}\n",
        ACCOUNT + f"resource b '{STORAGE}' = if (empty(account.properties.x)) {{\n  name: 'y'\n}}\n",
        ACCOUNT + f"resource b '{STORAGE}' = {{\n  parent: account\n  name: 'y'\n}}\n",
        f"resource a '{STORAGE}' = if (false) {{\n  name: 'x'\n}}\noutput b string = a.properties.x\n",
    ],
)
def test_what_would_not_deploy_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TemplateError):
        deploy(file(tmp_path, text), {})


def module(folder: Path, body: str, after: str = "") -> Deployment:
    file(folder, "param a string\noutput b string = a\n", "part.bicep")
    return deploy(file(folder, f"param go bool = true\nmodule part 'part.bicep' = {body}\n{after}"), {})


def test_the_output_of_a_module_is_known_only_when_it_was_deployed(tmp_path: Path) -> None:
    made = module(tmp_path, "{\n  name: 'part'\n  params: {\n    a: 'x'\n  }\n}", "output c string = part.outputs.b\n")
    assert made.outputs == {"c": "x"}
    assert isinstance(made.outputs["c"], Unknown)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("{\n  params: {\n    a: 'x'\n    z: 1\n  }\n}", ""),
        ("{\n}", ""),
        ("{\n  nonsense: 1\n  params: {\n    a: 'x'\n  }\n}", ""),
        ("{\n  params: {\n    a: 'x'\n  }\n}", "output c string = part.outputs.nothing\n"),
        ("if (!go) {\n  params: {\n    a: 'x'\n  }\n}", "output c string = part!.outputs.b\n"),
    ],
)
def test_a_module_that_is_used_wrongly_is_refused(tmp_path: Path, body: str, after: str) -> None:
    with pytest.raises(TemplateError):
        module(tmp_path, body, after)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("var a = true ? 1 : b\noutput c int = a\n", "b is nothing"),
        ("output c array = [for x in [1]: y]\n", "y is nothing"),
        ("output c int = nosuch(1)\n", "no function nosuch"),
        ("param a int\n", "nobody uses a"),
        ("@nosuch()\nparam a int\noutput b int = a\n", "no decorator nosuch"),
        ("param a number\noutput b int = a\n", "no type number"),
        ("param a int\noutput b int = a\n", "a is not described"),
        ("@secure()\nparam a string = 'key'\noutput b string = a\n", "the secret a has a default"),
        ("module a 'nosuch.bicep' = {\n}\n", "nosuch.bicep is no module"),
        ("module a 'part.bicep' = {\n}\n", "part.bicep needs a"),
        ("module a 'part.bicep' = {\n  params: {\n    a: 1\n    z: 1\n  }\n}\n", "part.bicep takes no z"),
        ("module a 'part.bicep' = {\n}\noutput z string = a.outputs.z\n", "part.bicep has no output z"),
        ("var a = 1\nvar a = 2\n", "a name stands for two things"),
    ],
)
def test_a_name_that_leads_nowhere_is_found_in_whatever_branch_it_stands(tmp_path: Path, text: str, told: str) -> None:
    file(tmp_path, "param a string\noutput b string = a\n", "part.bicep")
    assert any(told in problem for problem in lint.problems(file(tmp_path, text)))


# -- types ------------------------------------------------------------------------------------------------------------

SITE = "Microsoft.Web/sites"


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        (SITE, {"location": "x", "properties": {"httpOnly": True}}, ".properties.httpOnly does not exist"),
        (SITE, {"properties": {}}, ".location is required"),
        (SITE, {"location": "x", "properties": {"hostNames": []}}, ".properties.hostNames is set by the platform"),
        (SITE, {"location": "x", "properties": {"httpsOnly": "true"}}, ".properties.httpsOnly = 'true' is no bool"),
        (
            SITE,
            {"location": "x", "properties": {"functionAppConfig": {"scaleAndConcurrency": {"instanceMemoryMb": 512}}}},
            "instanceMemoryMb does not exist",
        ),
        (
            SITE,
            {"location": "x", "properties": {"functionAppConfig": {"scaleAndConcurrency": {"instanceMemoryMB": True}}}},
            "is no int",
        ),
        (
            SITE,
            {"location": "x", "properties": {"functionAppConfig": {"scaleAndConcurrency": {"alwaysReady": {}}}}},
            "alwaysReady is no array",
        ),
        (
            "Microsoft.Storage/storageAccounts",
            {"location": "x", "kind": "StorageV2", "sku": {"name": "Standard_ABC"}},
            ".sku.name = 'Standard_ABC' is none of",
        ),
        (
            "Microsoft.Authorization/roleAssignments",
            {"properties": {"roleDefinition": "x", "principalId": "x", "roleDefinitionId": "x"}},
            ".properties.roleDefinition does not exist",
        ),
        (
            "Microsoft.ManagedIdentity/userAssignedIdentities",
            {"location": "x", "properties": {"clientId": "x"}},
            ".properties.clientId is set by the platform",
        ),
    ],
)
def test_a_body_that_is_no_such_resource_is_told(kind: str, body: dict[str, object], told: str) -> None:
    assert any(told in problem for problem in azure_types.problems(kind, "it", body))


def test_a_property_that_is_read_has_to_exist() -> None:
    assert azure_types.has_path("Microsoft.Insights/components", "properties.ConnectionString")
    assert not azure_types.has_path("Microsoft.Insights/components", "properties.connectionString")
