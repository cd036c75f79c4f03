"""What can be said of a file without deploying it: names that lead nowhere, names that nobody uses, modules."""

from collections.abc import Iterator
from pathlib import Path

from tests.support.bicep.functions import FUNCTIONS
from tests.support.bicep.syntax import parse
from tests.support.bicep.template import TYPES
from tests.support.bicep.tree import (
    Call,
    Condition,
    File,
    Lambda,
    Loop,
    Member,
    Module,
    Name,
    Node,
    Object,
    Output,
    Param,
    Resource,
    Statement,
    Text,
    walk,
)

DECORATORS = {"allowed", "description", "maxLength", "maxValue", "minLength", "minValue", "secure"}
MODULE_KEYS = {"name", "scope", "params", "dependsOn"}


def read(path: Path) -> File:
    return parse(path.read_text(encoding="utf-8"))


def problems(path: Path) -> list[str]:
    """Everything that is wrong with a file, its references to modules included."""
    file = read(path)
    return [f"{path.name}:{line}: {problem}" for line, problem in _problems(file, path)]


def _problems(file: File, path: Path) -> Iterator[tuple[int, str]]:
    symbols = [each for each in file.statements if not isinstance(each, Output)]
    known = {each.name for each in symbols}
    if len(known) != len(symbols):
        yield 1, "a name stands for two things"
    yield from _unknown_names(file, known)
    used = {node.name for node in walk(file.statements) if isinstance(node, Name)}
    for each in symbols:
        if each.name not in used and not isinstance(each, Module | Resource):
            yield each.line, f"nobody uses {each.name}"
        if isinstance(each, Resource) and each.existing and each.name not in used:
            yield each.line, f"nobody uses {each.name}"
    for statement in file.statements:
        yield from _statement_problems(statement)
    for module in file.of(Module):
        yield from _module_problems(module, path, file)


def _unknown_names(file: File, known: set[str]) -> Iterator[tuple[int, str]]:
    for statement in file.statements:
        for node, local in _with_locals(statement, frozenset()):
            if isinstance(node, Name) and node.name not in known | local:
                yield node.line, f"{node.name} is nothing"
            if isinstance(node, Call) and node.name not in FUNCTIONS | dict.fromkeys(DECORATORS):
                yield node.line, f"there is no function {node.name}"


def _with_locals(node: object, local: frozenset[str]) -> Iterator[tuple[Node, frozenset[str]]]:
    """Every node below, with the names that loops and lambdas around it give."""
    match node:
        case Loop():
            yield from _with_locals(node.source, local)
            yield from _with_locals(node.body, local | {node.item, *([node.index] if node.index else [])})
        case Lambda():
            yield from _with_locals(node.body, local | {node.parameter})
        case Node():
            yield node, local
            for name in node.__dataclass_fields__:
                yield from _with_locals(getattr(node, name), local)
        case tuple() | list():
            for part in node:
                yield from _with_locals(part, local)
        case dict():
            yield from _with_locals(list(node.values()), local)


def _statement_problems(statement: Statement) -> Iterator[tuple[int, str]]:
    for name in statement.decorators.keys() - DECORATORS:
        yield statement.line, f"there is no decorator {name}"
    if isinstance(statement, Param | Output):
        if "description" not in statement.decorators:
            yield statement.line, f"{statement.name} is not described"
        if statement.type not in TYPES:
            yield statement.line, f"there is no type {statement.type}"
    if isinstance(statement, Param) and "secure" in statement.decorators and statement.default is not None:
        is_empty = statement.default in (Text(statement.default.line, ("",)), Object(statement.default.line, ()))
        if not is_empty:
            yield statement.line, f"the secret {statement.name} has a default"


def _module_problems(module: Module, path: Path, file: File) -> Iterator[tuple[int, str]]:
    target = path.parent / module.path
    body = module.body.body if isinstance(module.body, Condition) else module.body
    if not target.is_file() or not isinstance(body, Object):
        yield module.line, f"{module.path} is no module"
        return
    taken, given = {each.name: each for each in read(target).of(Param)}, body.get("params")
    names = {key.plain for key, _ in given.entries} if isinstance(given, Object) else set()
    for key, _ in body.entries:
        if key.plain not in MODULE_KEYS:
            yield key.line, f"a module has no {key.plain}"
    for name in names - taken.keys():
        yield module.line, f"{module.path} takes no {name}"
    for name, param in taken.items():
        if param.default is None and name not in names:
            yield module.line, f"{module.path} needs {name}"
    offered = {each.name for each in read(target).of(Output)}
    for node in walk(file.statements):
        match node:
            case Member(target=Member(target=Name(name=module.name), name="outputs"), name=name) if name not in offered:
                yield node.line, f"{module.path} has no output {name}"
