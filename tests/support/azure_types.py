"""What Azure's resources look like, read off the models of its management packages.

`problems` holds the body of a resource against them: no property that does not exist, none that only the platform sets,
none of the wrong kind, no value that is none of an enumeration's, and nothing required left out. The packages describe
one version each, mostly a newer one than a template asks for: what they know may be too new, which this cannot tell.
"""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

#: The package below `azure.mgmt` and its model, by resource type; with `/NAME` where a type has a body for each name.
MODELS: dict[str, tuple[str, str]] = {
    "Microsoft.Authorization/roleAssignments": ("authorization", "RoleAssignmentCreateParameters"),
    "Microsoft.Insights/components": ("applicationinsights", "ApplicationInsightsComponent"),
    "Microsoft.ManagedIdentity/userAssignedIdentities": ("msi", "Identity"),
    "Microsoft.Network/privateDnsZones": ("privatedns", "PrivateZone"),
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks": ("privatedns", "VirtualNetworkLink"),
    "Microsoft.Network/privateEndpoints": ("network", "PrivateEndpoint"),
    "Microsoft.Network/privateEndpoints/privateDnsZoneGroups": ("network", "PrivateDnsZoneGroup"),
    "Microsoft.Network/virtualNetworks": ("network", "VirtualNetwork"),
    "Microsoft.OperationalInsights/workspaces": ("loganalytics", "Workspace"),
    "Microsoft.Storage/storageAccounts": ("storage", "StorageAccount"),
    "Microsoft.Storage/storageAccounts/blobServices": ("storage", "BlobServiceProperties"),
    "Microsoft.Storage/storageAccounts/blobServices/containers": ("storage", "BlobContainer"),
    "Microsoft.Storage/storageAccounts/managementPolicies": ("storage", "ManagementPolicy"),
    "Microsoft.Storage/storageAccounts/queueServices": ("storage", "QueueServiceProperties"),
    "Microsoft.Storage/storageAccounts/queueServices/queues": ("storage", "StorageQueue"),
    "Microsoft.Storage/storageAccounts/tableServices": ("storage", "TableServiceProperties"),
    "Microsoft.Storage/storageAccounts/tableServices/tables": ("storage", "Table"),
    "Microsoft.Web/serverfarms": ("web", "AppServicePlan"),
    "Microsoft.Web/sites": ("web", "Site"),
    "Microsoft.Web/sites/basicPublishingCredentialsPolicies": ("web", "CsmPublishingCredentialsPoliciesEntity"),
    "Microsoft.Web/sites/config/appsettings": ("web", "StringDictionary"),
    "Microsoft.Web/sites/config/authsettingsV2": ("web", "SiteAuthSettingsV2"),
}
#: Where what is sent has a model of its own; the one above is what comes back.
SENT = {"Microsoft.Storage/storageAccounts": ("storage", "StorageAccountCreateParameters")}
#: Models that are not in these packages.
PLAIN = {"Microsoft.Resources/resourceGroups": {"location", "tags"}}

_SCALARS: dict[str, type] = {"str": str, "int": int, "bool": bool}


@dataclass(frozen=True, slots=True)
class Field:
    """A property: `shape` has its own properties, `values` its possible values, `many` is "list" or "dict"."""

    shape: "Shape | None" = None
    values: frozenset[str] = frozenset()
    scalar: type | None = None
    many: str = ""
    read_only: bool = False
    required: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, or the part of one that stands below `prefix` where the model is flattened."""

    model: Any
    prefix: str = ""

    def fields(self) -> dict[str, Field]:
        """By their names in JSON."""
        return _fields(self.model, self.prefix)


def problems(kind: str, name: str, body: dict[str, Any]) -> list[str]:
    """What is wrong with a resource of that type and name."""
    if kind in PLAIN:
        return [f"{kind}: {key}" for key in body.keys() - PLAIN[kind]]
    shape = shape_of(kind, name, sent=True)
    return [f"{kind} {problem}" for problem in _wrong(shape, body, "")]


def shape_of(kind: str, name: str, *, sent: bool) -> Shape:
    """The model of a type. Raises KeyError for one that has no line above."""
    table = MODELS | SENT if sent else MODELS
    package, model = table.get(f"{kind}/{name.split('/')[-1]}") or table[kind]
    return Shape(getattr(importlib.import_module(f"azure.mgmt.{package}.models"), model))


def has_path(kind: str, path: str) -> bool:
    """Whether a resource of that type comes back with a property at `a.b.c`."""
    shape: Shape | None = shape_of(kind, "", sent=False)
    for step in path.split("."):
        field = shape.fields().get(step) if shape is not None else None
        if field is None:
            return False
        shape = field.shape
    return True


def _wrong(shape: Shape, body: Any, path: str) -> Iterator[str]:
    if not isinstance(body, dict):
        yield f"{path} is no object"
        return
    fields = shape.fields()
    for name in sorted(name for name, field in fields.items() if field.required and not field.read_only):
        if name not in body:
            yield f"{path}.{name} is required"
    for name, value in body.items():
        field = fields.get(name)
        if field is None:
            yield f"{path}.{name} does not exist"
        elif field.read_only:
            yield f"{path}.{name} is set by the platform"
        elif value is not None:
            yield from _wrong_value(field, value, f"{path}.{name}")


def _wrong_value(field: Field, value: Any, path: str) -> Iterator[str]:
    if field.many == "list":
        if not isinstance(value, list):
            yield f"{path} is no array"
            return
        each = value
    elif field.many == "dict":
        if not isinstance(value, dict):
            yield f"{path} is no object"
            return
        each = list(value.values())
    else:
        each = [value]
    for one in each:
        if field.shape is not None:
            yield from _wrong(field.shape, one, path)
        elif field.values and one not in field.values:
            yield f"{path} = {one!r} is none of {sorted(field.values)}"
        elif field.scalar and (not isinstance(one, field.scalar) or isinstance(one, bool) != (field.scalar is bool)):
            yield f"{path} = {one!r} is no {field.scalar.__name__}"


# -- the packages' two ways to write a model --------------------------------------------------------------------------


@cache
def _fields(model: Any, prefix: str) -> dict[str, Field]:
    return _flattened(model, prefix) if hasattr(model, "_attribute_map") else _declared(model)


def _declared(model: Any) -> dict[str, Field]:
    """The newer way: annotations, and a table that exists once an instance was made."""
    model()
    annotations = {name: str(kind) for base in reversed(model.__mro__) for name, kind in _own_annotations(base)}
    found = {}
    for attribute, rest in model._attr_to_rest_field.items():
        annotation = annotations[attribute]
        named = re.search(r"_models\.(\w+)", annotation)
        found[rest._rest_name] = _field(
            model,
            named[1] if named else annotation.rpartition("[")[2] if "[" in annotation else annotation,
            many=next((many for many in ("list", "dict") if re.search(rf"\b{many}\[", annotation)), ""),
            scalar=_scalar(annotation),
            read_only=rest._visibility == ["read"],
            required="NoneType" not in annotation and "Optional" not in annotation,
        )
    return found


def _own_annotations(base: type) -> list[tuple[str, Any]]:
    return list(vars(base).get("__annotations__", {}).items())


def _scalar(annotation: str) -> str:
    matched = re.fullmatch(r"(?:typing\.Optional\[)?(?:<class ')?(str|int|bool)(?:'>)?\]?", annotation)
    return matched[1] if matched else ""


def _flattened(model: Any, prefix: str) -> dict[str, Field]:
    """The older way: a table from attributes to paths, in which `properties` of a resource is left out as an object."""
    found: dict[str, Field] = {}
    for attribute, entry in model._attribute_map.items():
        path: str = entry["key"].replace(r"\.", "\0")
        if not path.startswith(prefix):
            continue
        name, _, below = path.removeprefix(prefix).partition(".")
        name = name.replace("\0", ".")
        if below:
            found[name] = Field(shape=Shape(model, f"{prefix}{name}."))
            continue
        rules = model._validation.get(attribute, {})
        kind: str = entry["type"]
        found[name] = _field(
            model,
            kind.strip("[]{}"),
            many={"[": "list", "{": "dict"}.get(kind[0], ""),
            scalar=kind,
            read_only=rules.get("readonly", False),
            required=rules.get("required", False),
        )
    return found


def _field(model: Any, named: str, *, many: str, scalar: str, read_only: bool, required: bool) -> Field:
    package = importlib.import_module(model.__module__.rpartition(".")[0])
    other = getattr(package, named, None)
    members: dict[str, Any] = getattr(other, "__members__", {})
    values = frozenset(member.value for member in members.values())
    shape = Shape(other) if isinstance(other, type) and not values and named[0].isupper() else None
    kind = None if many or shape or values else _SCALARS.get(scalar)
    return Field(shape, values, kind, many, read_only, required)
