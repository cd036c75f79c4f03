"""What a Bicep template would deploy: its files evaluated for given parameters, as the resource manager would.

What only the platform knows (an address it assigns, the output of a module) is an `Unknown`: a text that may go into
properties and parameters, and may decide nothing. `TemplateError` says what would not compile or deploy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.bicep import tree
from tests.support.bicep.functions import FUNCTIONS, OPERATORS
from tests.support.bicep.syntax import parse

#: What a body says of the resource's place and time, not of the resource.
PLACE = ("name", "parent", "scope", "dependsOn")
TYPES: dict[str, type] = {"string": str, "int": int, "bool": bool, "object": dict, "array": list}


class TemplateError(Exception):
    """The template cannot be compiled, or not be deployed with these parameters."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path.name}:{line}: {problem}")


class Unknown(str):
    """A text that is known while the deployment runs, not before."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Deployed:
    """A resource. `body` is what is sent for it: everything but what says where it stands and when it is made."""

    symbol: str
    type: str
    version: str
    name: str
    existing: bool = False
    wanted: bool = True
    scope: "Deployed | None" = None
    body: dict[str, Any] = field(default_factory=dict)
    children: dict[str, "Deployed"] = field(default_factory=dict)

    @property
    def id(self) -> str:
        provider, *types = self.type.split("/")
        steps = [f"{kind}/{name}" for kind, name in zip(types, self.name.split("/"), strict=True)]
        place = self.scope.id if self.scope is not None else "/subscriptions/S/resourceGroups/G"
        return f"{place}/providers/{provider}/{'/'.join(steps)}"


@dataclass(slots=True)
class Deployment:
    """What came of a template and its modules. `reads` are the properties it asks of resources: (type, path)."""

    resources: list[Deployed] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    reads: set[tuple[str, str]] = field(default_factory=set)
    modules: dict[str, "Deployment | None"] = field(default_factory=dict)

    def of(self, kind: str) -> list[Deployed]:
        """What is made of a type, wherever in the template."""
        return [each for each in self.everything() if each.type == kind and not each.existing]

    def everything(self) -> list[Deployed]:
        below = [each for module in self.modules.values() if module is not None for each in module.everything()]
        return [*(each for each in self.resources if each.wanted), *below]

    def all_reads(self) -> set[tuple[str, str]]:
        return self.reads.union(*(module.all_reads() for module in self.modules.values() if module is not None))


def deploy(path: Path, parameters: Mapping[str, Any]) -> Deployment:
    """Evaluate a template. Raises TemplateError, BicepSyntaxError."""
    return _Evaluation(path, parameters).run()


@dataclass(frozen=True, slots=True)
class _Made:
    """A module that was evaluated, or left out by its condition."""

    symbol: str
    deployment: Deployment | None


type _Locals = dict[str, Any]


class _Evaluation:
    def __init__(self, path: Path, parameters: Mapping[str, Any]) -> None:
        self._path = path
        self._file = parse(path.read_text(encoding="utf-8"))
        self._symbols = {each.name: each for each in self._file.statements if not isinstance(each, tree.Output)}
        self._given = dict(parameters)
        self._values: dict[str, Any] = {}
        self._under_way: list[str] = []
        self._made = Deployment()
        self._uses: dict[str, set[str]] = {}
        self._user = ""

    def run(self) -> Deployment:
        params = {each.name: each for each in self._file.of(tree.Param)}
        if strange := self._given.keys() - params.keys():
            self._fail(1, f"there is no parameter {sorted(strange)}")
        for param in params.values():
            self._values[param.name] = self._parameter(param)
        for statement in self._file.statements:
            if isinstance(statement, tree.Resource | tree.Module | tree.Var):
                self._value_of(statement.name, statement.line)
        for resource in self._file.of(tree.Resource):
            self._user = resource.name
            self._fill(resource, self._value_of(resource.name, resource.line))
        self._user = ""
        for output in self._file.of(tree.Output):
            value = self._made.outputs[output.name] = self._evaluate(output.value, {})
            self._check_type(output.line, output.name, output.type, value)
        self._refuse_cycles()
        return self._made

    def _error(self, line: int, problem: str) -> TemplateError:
        return TemplateError(self._path, line, problem)

    def _fail(self, line: int, problem: str) -> Any:
        raise self._error(line, problem)

    # -- parameters

    def _parameter(self, param: tree.Param) -> Any:
        if param.name not in self._given:
            if param.default is None:
                self._fail(param.line, f"parameter {param.name} is required")
            return self._checked(param, self._evaluate(param.default, {}))
        return self._checked(param, self._given[param.name])

    def _checked(self, param: tree.Param, value: Any) -> Any:
        self._check_type(param.line, param.name, param.type, value)
        for name, arguments in param.decorators.items():
            limit = self._evaluate(arguments[0], {}) if arguments else None
            refused = {
                "allowed": lambda limit=limit: value not in limit,
                "minValue": lambda limit=limit: value < limit,
                "maxValue": lambda limit=limit: value > limit,
                "minLength": lambda limit=limit: len(value) < limit,
                "maxLength": lambda limit=limit: len(value) > limit,
            }.get(name, lambda: False)
            if refused():
                self._fail(param.line, f"{param.name} = {value!r}: @{name}({limit})")
        return value

    def _check_type(self, line: int, name: str, kind: str, value: Any) -> None:
        fits = isinstance(value, TYPES[kind]) and not (kind == "int" and isinstance(value, bool))
        if not fits:
            self._fail(line, f"{name} is no {kind}: {value!r}")

    # -- symbols

    def _value_of(self, name: str, line: int) -> Any:
        if name in self._values:
            return self._values[name]
        statement = self._symbols.get(name)
        if name in self._under_way:
            self._fail(line, f"{name} depends on itself")
        self._under_way.append(name)
        user, self._user = self._user, name
        match statement:
            case tree.Var(value=value):
                made = self._evaluate(value, {})
            case tree.Resource():
                made = self._resource(statement)
            case tree.Module():
                made = self._module(statement)
            case _:
                made = self._fail(line, f"{name} is nothing")
        self._user = user
        self._under_way.pop()
        self._values[name] = made
        return made

    def _decided(self, expression: tree.Expression, local: _Locals) -> Any:
        """A value that has to be known before anything is deployed."""
        value = self._evaluate(expression, local)
        if isinstance(value, Unknown):
            self._fail(expression.line, f"{value} is not known before the deployment")
        return value

    def _resource(
        self, statement: tree.Resource, parent: Deployed | None = None, outer: _Locals | None = None
    ) -> Deployed | list[Deployed]:
        match statement.body:
            case tree.Loop() as loop:
                return [
                    made
                    for local in self._rounds(loop, outer or {})
                    if isinstance(made := self._one(statement, loop.body, parent, local), Deployed)
                ]
            case body:
                return self._one(statement, body, parent, outer or {})

    def _one(
        self, statement: tree.Resource, body: tree.Expression, parent: Deployed | None, local: _Locals
    ) -> Deployed:
        wanted = True
        if isinstance(body, tree.Condition):
            wanted, body = bool(self._decided(body.condition, local)), body.body
        if not isinstance(body, tree.Object) or (named := body.get("name")) is None:
            raise self._error(statement.line, f"{statement.name} has no name")
        above = self._evaluate(body.get("parent"), local) if body.get("parent") else parent
        name, kind = self._decided(named, local), statement.type
        if parent is not None:
            kind = f"{parent.type}/{kind}@{parent.version}"
        if above is not None:
            if "/" in name or kind.split("@")[0].rpartition("/")[0] != above.type:
                self._fail(statement.line, f"{statement.name} does not belong below {above.symbol}")
            name = f"{above.name}/{name}"
        kind, _, version = kind.partition("@")
        if name.count("/") != kind.count("/") - 1:
            self._fail(statement.line, f"{kind} cannot have the name {name}")
        scope = self._evaluate(body.get("scope"), local) if body.get("scope") else None
        made = Deployed(statement.name, kind, version, name, statement.existing, wanted, scope)
        if made.id in {each.id for each in self._made.resources if each.wanted and not each.existing}:
            self._fail(statement.line, f"{made.id} is deployed twice")
        self._made.resources.append(made)
        for child in body.children:
            below = self._resource(child, made, local)
            made.children[child.name] = below if isinstance(below, Deployed) else self._fail(child.line, "a loop")
        return made

    def _fill(self, statement: tree.Resource, made: Deployed | list[Deployed], local: _Locals | None = None) -> None:
        """Evaluate the bodies, once all names are known."""
        body = statement.body
        if isinstance(body, tree.Loop):
            assert isinstance(made, list)
            for each, inner in zip(made, self._rounds(body, local or {}), strict=True):
                self._fill_one(body.body, each, inner)
        else:
            assert isinstance(made, Deployed)
            self._fill_one(body, made, local or {})

    def _fill_one(self, body: tree.Expression, made: Deployed, local: _Locals) -> None:
        if not made.wanted:
            return
        if isinstance(body, tree.Condition):
            body = body.body
        assert isinstance(body, tree.Object)
        written = {key.plain: self._evaluate(value, local) for key, value in body.entries if key.plain is not None}
        made.body = {key: value for key, value in written.items() if key not in PLACE}
        for child in body.children:
            self._fill(child, made.children[child.name], local)

    def _module(self, statement: tree.Module) -> _Made:
        body = statement.body
        if isinstance(body, tree.Condition):
            if not self._decided(body.condition, {}):
                self._made.modules[statement.name] = None
                return _Made(statement.name, None)
            body = body.body
        if not isinstance(body, tree.Object):
            raise self._error(statement.line, "a loop of modules")
        for key, value in body.entries:
            if key.plain not in ("name", "scope", "params", "dependsOn"):
                self._fail(key.line, f"a module has no {key.plain}")
            if key.plain != "params":
                self._evaluate(value, {})
        params = self._evaluate(body.get("params") or tree.Object(statement.line, ()), {})
        # Whoever deploys the module waits until they are known.
        known = {name: str(value) if isinstance(value, Unknown) else value for name, value in params.items()}
        made = deploy(self._path.parent / statement.path, known)
        self._made.modules[statement.name] = made
        return _Made(statement.name, made)

    def _refuse_cycles(self) -> None:
        def visit(name: str, above: tuple[str, ...]) -> None:
            if name in above:
                self._fail(1, f"a circle: {' → '.join([*above, name])}")
            for used in self._uses.get(name, set()) - {name}:
                visit(used, (*above, name))

        for name in self._uses.keys() - {""}:
            visit(name, ())

    # -- expressions

    def _rounds(self, loop: tree.Loop, local: _Locals) -> list[_Locals]:
        source = self._decided(loop.source, local)
        if not isinstance(source, list):
            self._fail(loop.line, f"{source!r} is no array")
        index = {} if loop.index is None else {loop.index: 0}
        return [{**local, loop.item: item, **dict.fromkeys(index, at)} for at, item in enumerate(source)]

    def _evaluate(self, expression: tree.Expression | None, local: _Locals) -> Any:
        match expression:
            case tree.Literal(value=value):
                return value
            case tree.Text(parts=parts):
                pieces = [part if isinstance(part, str) else self._evaluate(part, local) for part in parts]
                if wrong := [piece for piece in pieces if isinstance(piece, dict | list | Deployed | _Made)]:
                    self._fail(expression.line, f"{wrong} within a text")
                kind = Unknown if any(isinstance(piece, Unknown) for piece in pieces) else str
                return kind("".join(map(str, pieces)))
            case tree.Name(name=name):
                if name in local:
                    return local[name]
                self._uses.setdefault(self._user, set()).add(name)
                return self._value_of(name, expression.line)
            case tree.Array(items=items):
                return [self._evaluate(item, local) for item in items]
            case tree.Object(entries=entries):
                return {self._decided(key, local): self._evaluate(value, local) for key, value in entries}
            case tree.Loop() as loop:
                return [self._evaluate(loop.body, inner) for inner in self._rounds(loop, local)]
            case tree.Lambda(parameter=parameter, body=body):
                return lambda value: self._evaluate(body, {**local, parameter: value})
            case tree.Choice(condition=condition, yes=yes, no=no):
                return self._evaluate(yes if self._truth(condition, local) else no, local)
            case tree.Unary(operator="!", operand=operand):
                return not self._truth(operand, local)
            case tree.Binary(operator="&&" | "||" as operator, left=left, right=right):
                first = self._truth(left, local)
                return first if first is (operator == "||") else self._truth(right, local)
            case tree.Binary(operator=operator, left=left, right=right) if operator in OPERATORS:
                return OPERATORS[operator](self._decided(left, local), self._decided(right, local))
            case tree.Call() as call:
                return self._call(call, local)
            case tree.Member() as member:
                return self._member(member, local)
            case tree.Index(target=target, index=index):
                found = self._evaluate(target, local)
                at = self._decided(index, local)
                if not isinstance(found, list) or not 0 <= at < len(found):
                    self._fail(expression.line, f"there is no element {at}")
                return found[at]
        return self._fail(expression.line if expression else 1, f"not evaluated here: {expression}")

    def _truth(self, expression: tree.Expression, local: _Locals) -> bool:
        value = self._decided(expression, local)
        return value if isinstance(value, bool) else bool(self._fail(expression.line, f"{value!r} is no condition"))

    def _call(self, call: tree.Call, local: _Locals) -> Any:
        fewest, most, function = FUNCTIONS.get(call.name) or self._fail(call.line, f"there is no function {call.name}")
        if not fewest <= len(call.arguments) <= most:
            self._fail(call.line, f"{call.name} takes {fewest} to {most} arguments")
        values = [self._evaluate(argument, local) for argument in call.arguments]
        if call.name != "union" and any(isinstance(value, Unknown) for value in values):
            self._fail(call.line, f"{call.name} of what is not known before the deployment")
        return function(*values)

    def _member(self, member: tree.Member, local: _Locals) -> Any:
        target = self._evaluate(member.target, local)
        name, line = member.name, member.line
        match target:
            case Deployed() if member.nested:
                return target.children.get(name) or self._fail(line, f"{target.symbol} has no child {name}")
            case Deployed():
                if name in ("id", "name", "type"):
                    return target.name.split("/")[-1] if name == "name" else getattr(target, name)
                return self._read(target, name, line)
            case _Made(symbol=symbol, deployment=made):
                if name != "outputs" or made is None:
                    return self._fail(line, f"{symbol}.{name}, and the module is {'deployed' if made else 'left out'}")
                # Its texts are known only when it was deployed.
                return {key: Unknown(value) if isinstance(value, str) else value for key, value in made.outputs.items()}
            case _Property(owner=owner, path=path):
                return self._read(owner, f"{path}.{name}", line)
            case dict() if name in target:
                return target[name]
        return self._fail(line, f"there is no {name}")

    def _read(self, owner: Deployed, path: str, line: int) -> "_Property":
        if not owner.wanted:
            self._fail(line, f"{owner.symbol} is not deployed")
        self._made.reads -= {(owner.type, path.rpartition(".")[0])}
        self._made.reads.add((owner.type, path))
        return _Property(owner, path)


class _Property(Unknown):
    """A property that the platform fills in."""

    owner: Deployed
    path: str
    __match_args__ = ("owner", "path")

    def __new__(cls, owner: Deployed, path: str) -> "_Property":
        made = super().__new__(cls, f"<{owner.id}#{path}>")
        made.owner, made.path = owner, path
        return made
