"""The tree of a Bicep file."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

type Expression = (
    Literal | Text | Name | Array | Object | Call | Member | Index | Unary | Binary | Choice | Loop | Condition | Lambda
)


@dataclass(frozen=True, slots=True)
class Node:
    """A place in the text: `line` counts from 1."""

    line: int


@dataclass(frozen=True, slots=True)
class Literal(Node):
    value: int | bool | None


@dataclass(frozen=True, slots=True)
class Text(Node):
    """A string: pieces of text and expressions between them."""

    parts: tuple["str | Expression", ...]

    @property
    def plain(self) -> str | None:
        """The text, None if there is an expression in it."""
        pieces = [part for part in self.parts if isinstance(part, str)]
        return "".join(pieces) if len(pieces) == len(self.parts) else None


@dataclass(frozen=True, slots=True)
class Name(Node):
    name: str


@dataclass(frozen=True, slots=True)
class Array(Node):
    items: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Object(Node):
    entries: tuple[tuple[Text, "Expression"], ...]
    children: tuple["Resource", ...] = ()

    def get(self, key: str) -> "Expression | None":
        return next((value for name, value in self.entries if name.plain == key), None)


@dataclass(frozen=True, slots=True)
class Call(Node):
    name: str
    arguments: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Member(Node):
    """`target.name`, or with `nested` `target::name`."""

    target: "Expression"
    name: str
    nested: bool = False


@dataclass(frozen=True, slots=True)
class Index(Node):
    target: "Expression"
    index: "Expression"


@dataclass(frozen=True, slots=True)
class Unary(Node):
    operator: str
    operand: "Expression"


@dataclass(frozen=True, slots=True)
class Binary(Node):
    operator: str
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, slots=True)
class Choice(Node):
    condition: "Expression"
    yes: "Expression"
    no: "Expression"


@dataclass(frozen=True, slots=True)
class Loop(Node):
    item: str
    index: str | None
    source: "Expression"
    body: "Expression"


@dataclass(frozen=True, slots=True)
class Condition(Node):
    """`if (condition) body`, of a resource or module."""

    condition: "Expression"
    body: "Expression"


@dataclass(frozen=True, slots=True)
class Lambda(Node):
    parameter: str
    body: "Expression"


@dataclass(frozen=True, slots=True)
class Statement(Node):
    name: str
    decorators: dict[str, tuple[Expression, ...]]


@dataclass(frozen=True, slots=True)
class Param(Statement):
    type: str
    default: Expression | None


@dataclass(frozen=True, slots=True)
class Var(Statement):
    value: Expression


@dataclass(frozen=True, slots=True)
class Output(Statement):
    type: str
    value: Expression


@dataclass(frozen=True, slots=True)
class Resource(Statement):
    """`type` is as written: with a version, or the last part of a child's type alone."""

    type: str
    existing: bool
    body: Expression


@dataclass(frozen=True, slots=True)
class Module(Statement):
    path: str
    body: Expression


@dataclass(slots=True)
class File:
    """One Bicep file."""

    scope: str = "resourceGroup"
    statements: list[Statement] = field(default_factory=list)

    def of[S: Statement](self, kind: type[S]) -> list[S]:
        return [statement for statement in self.statements if isinstance(statement, kind)]


def walk(node: object) -> Iterator[Node]:
    """The nodes below a node, and itself."""
    if isinstance(node, Node):
        yield node
        for each in fields(node):
            yield from walk(getattr(node, each.name))
    elif isinstance(node, tuple | list):
        for part in node:
            yield from walk(part)
    elif isinstance(node, dict):
        yield from walk(list(node.values()))
