"""The files around the template: azd's, the guide, the public workflow."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bicep import lint
from tests.support.bicep.template import TYPES, deploy
from tests.support.bicep.tree import Literal, Output, Param, Text

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "infra" / "main.bicep"
GUIDE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?:=(?P<default>[^}]*))?\}")


def read_yaml(name: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def values() -> dict[str, Any]:
    content = json.loads((ROOT / "infra" / "main.parameters.json").read_text(encoding="utf-8"))
    return {name: entry["value"] for name, entry in content["parameters"].items()}


# -- azd --------------------------------------------------------------------------------------------------------------


def test_azd_finds_the_template_and_the_function_app() -> None:
    azure = read_yaml("azure.yaml")
    infra = azure["infra"]
    assert ROOT / infra["path"] / f"{infra['module']}.bicep" == MAIN
    [(name, service)] = azure["services"].items()
    assert (service["host"], service["language"], service["project"]) == ("function", "python", ".")
    [app] = deploy(MAIN, {"environmentName": "e", "location": "l"}).of("Microsoft.Web/sites")
    assert app.body["tags"] == {"azd-env-name": "e", "azd-service-name": name}


def test_every_value_is_of_a_parameter_and_of_its_type() -> None:
    params = {each.name: each for each in lint.read(MAIN).of(Param)}
    assert {name for name, each in params.items() if each.default is None} <= values().keys() <= params.keys()
    for name, value in values().items():
        assert isinstance(value, TYPES[params[name].type]), name


def test_what_azd_fills_in_is_what_it_knows_or_has_the_default_of_the_template() -> None:
    found = {name: VARIABLE.fullmatch(value) for name, value in values().items() if "$" in str(value)}
    defaults = {name: match["default"] for name, match in found.items() if match is not None}
    assert defaults.keys() == found.keys()
    assert defaults.pop("environmentName") is None
    assert defaults.pop("location") is None
    own = {each.name: each.default for each in lint.read(MAIN).of(Param)}
    assert defaults == {name: value.plain for name in defaults if isinstance(value := own[name], Text)}


# -- the guide --------------------------------------------------------------------------------------------------------


def test_the_guide_tells_every_variable_and_every_parameter() -> None:
    told = set(re.findall(r"`([A-Za-z_]+)`", GUIDE))
    for param in lint.read(MAIN).of(Param):
        match = VARIABLE.fullmatch(str(values().get(param.name)))
        assert (match["name"] if match else param.name) in told


def test_the_guide_has_the_defaults_right() -> None:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|.*\| `?([^|`]*)`? \|$", GUIDE, re.MULTILINE)
    told = {name: default for names, default in rows for name in re.findall(r"\w+", names)}
    numbers = {each.name: each.default for each in lint.read(MAIN).of(Param) if isinstance(each.default, Literal)}
    assert len(numbers) > 5
    for name, default in numbers.items():
        assert told[name] == str(default.value).lower(), name


def test_the_guide_uses_outputs_and_parameters_that_exist() -> None:
    outputs = {each.name for each in lint.read(MAIN).of(Output)}
    assert set(re.findall(r"azd env get-value ([A-Z_]+)", GUIDE)) <= outputs
    [line] = re.findall(r"--parameters ([^\n]*)", GUIDE)
    assert {pair.split("=")[0] for pair in line.split()} <= {each.name for each in lint.read(MAIN).of(Param)}
    assert {name for name in re.findall(r"--template-file (\S+)", GUIDE) if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("name", ["docs/deploy.md", "infra/README.md"])
def test_every_link_of_the_guide_leads_somewhere(name: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text()) if "://" not in link]
    assert links
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


def test_the_guide_says_that_nobody_has_deployed_it() -> None:
    assert "So far nobody has deployed this" in GUIDE


# -- the workflow -----------------------------------------------------------------------------------------------------


def workflow() -> dict[str, Any]:
    return read_yaml(".github/workflows/ci.yml")


def steps() -> list[dict[str, Any]]:
    return [step for job in workflow()["jobs"].values() for step in job["steps"]]


def commands() -> str:
    return "\n".join(step.get("run", "") for step in steps())


def test_every_action_is_pinned_to_a_full_version() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used
    assert [each for each in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", each)] == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z-]+)", commands()))
    assert {"check", "test", "test-clients", "func"} <= used <= targets


def test_every_file_of_a_command_exists() -> None:
    named = re.findall(r"(?<![\w./-])((?:tests|infra|scripts)/[\w./-]+)", commands())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_test_of_a_command_exists() -> None:
    for name, test in re.findall(r"(tests/[\w./-]+)::(\w+)", commands()):
        assert f"def {test}(" in (ROOT / name).read_text(encoding="utf-8")


def test_the_workflow_uses_the_versions_that_the_project_asks_for() -> None:
    wanted = {step["uses"].split("@")[0]: step["with"] for step in steps() if "with" in step}
    python = (ROOT / ".python-version").read_text(encoding="utf-8").strip()
    assert wanted["actions/setup-python"] == {"python-version": python}
    assert f">={wanted['actions/setup-node']['node-version']}" == read_yaml("package.json")["engines"]["node"]
    assert re.search(r"azure-functions-core-tools@\d+\.\d+\.\d+", commands())


def test_the_workflow_can_only_read_and_ends() -> None:
    assert workflow()["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 60 for job in workflow()["jobs"].values())


def test_what_the_clients_are_held_against_is_an_agent_of_the_tests() -> None:
    module, _, attribute = workflow()["jobs"]["core-tools"]["env"]["RESPONSES_AGENT"].partition(":")
    source = ROOT / Path(*module.split(".")).with_suffix(".py")
    assert re.search(rf"^{attribute} = ", source.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_clients_go_where_the_workflow_sends_them() -> None:
    [name] = workflow()["jobs"]["core-tools"]["env"].keys() - {"RESPONSES_AGENT"}
    assert f'os.environ.get("{name}")' in (ROOT / "tests" / "clients" / "conftest.py").read_text(encoding="utf-8")
