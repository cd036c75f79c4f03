"""The syntax of Bicep, as far as `infra/` uses it: text in, a tree out.

Strict where the compiler is strict: one statement to a line, one property or element to a line or a comma between them,
operators with their precedence. Leaves out what `infra/` does without: types of one's own, functions of one's own,
imports, spread. What is left out or wrong is a `BicepSyntaxError` with its line.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tests.support.bicep.tree import (
    Array,
    Binary,
    Call,
    Choice,
    Condition,
    Expression,
    File,
    Index,
    Lambda,
    Literal,
    Loop,
    Member,
    Module,
    Name,
    Object,
    Output,
    Param,
    Resource,
    Statement,
    Text,
    Unary,
    Var,
)


class BicepSyntaxError(Exception):
    """The text is not Bicep, or not of the part of it that is read here."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line


@cache
def parse(text: str) -> File:
    """Read a file; whoever gets it leaves it as it is. Raises BicepSyntaxError."""
    return _Parser(_tokens(text)).file()


# -- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is name, int, text, end (of the file), newline, or the punctuation itself."""

    kind: str
    value: str
    line: int
    parts: tuple[str | Expression, ...] = ()


_SKIPPED = re.compile(r"[ \t]+|//[^\n]*|/\*.*?\*/", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INT = re.compile(r"[0-9]+")
_PUNCTUATION = re.compile(r"::|=>|==|!=|=~|!~|>=|<=|&&|\|\||\?\?|[-+*/%<>!?:.,=@(){}\[\]|]")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", "$": "$"}


def _tokens(text: str, line: int = 1) -> list[Token]:
    found: list[Token] = []
    at = 0
    while at < len(text):
        if skipped := _SKIPPED.match(text, at):
            line += skipped[0].count("\n")
            at = skipped.end()
        elif text[at] in "\r\n":
            found.append(Token("newline", "", line))
            line += text[at] == "\n"
            at += 1
        elif text[at] == "'":
            parts, at = _text(text, at, line)
            found.append(Token("text", "", line, parts))
        elif match := _NAME.match(text, at):
            found.append(Token("name", match[0], line))
            at = match.end()
        elif match := _INT.match(text, at):
            found.append(Token("int", match[0], line))
            at = match.end()
        elif match := _PUNCTUATION.match(text, at):
            found.append(Token(match[0], match[0], line))
            at = match.end()
        else:
            raise BicepSyntaxError(line, f"{text[at]!r} begins nothing")
    return [*found, Token("newline", "", line), Token("end", "", line)]


def _text(text: str, at: int, line: int) -> tuple[tuple[str | Expression, ...], int]:
    """The parts of the string that begins at `at`, and where it ends."""
    if text.startswith("'''", at):
        raise BicepSyntaxError(line, "strings of several lines are not read here")
    parts: list[str | Expression] = [""]
    at += 1
    while at < len(text) and text[at] not in "'\n":
        if text[at] == "\\":
            escaped = _ESCAPES.get(text[at + 1 : at + 2])
            if escaped is None:
                raise BicepSyntaxError(line, f"there is no escape {text[at : at + 2]!r}")
            piece, at = escaped, at + 2
        elif text.startswith("${", at):
            end = _closing_brace(text, at + 2, line)
            parts += [_Parser(_tokens(text[at + 2 : end], line)).expression_alone(), ""]
            at = end + 1
            continue
        else:
            piece, at = text[at], at + 1
        parts[-1] = f"{parts[-1]}{piece}"
    if text[at : at + 1] != "'":
        raise BicepSyntaxError(line, "a string does not end")
    return tuple(part for part in parts if part != "") or ("",), at + 1


def _closing_brace(text: str, at: int, line: int) -> int:
    depth = 0
    while at < len(text):
        if text[at] == "'":
            at = _text(text, at, line)[1]
            continue
        if text[at] == "}" and depth == 0:
            return at
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    raise BicepSyntaxError(line, "an expression in a string does not end")


# -- statements and expressions ---------------------------------------------------------------------------------------

# From the loosest to the tightest.
_BINARY = (
    ("??",),
    ("||",),
    ("&&",),
    ("==", "!=", "=~", "!~"),
    ("<", "<=", ">", ">="),
    ("+", "-"),
    ("*", "/", "%"),
)
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    # -- tokens

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self, kind: str, value: str | None = None) -> Token:
        token = self._next
        if token.kind != kind or (value is not None and token.value != value):
            raise BicepSyntaxError(token.line, f"{value or kind} expected, not {token.value or token.kind}")
        self._at += 1
        return token

    def _took(self, kind: str, value: str | None = None) -> bool:
        if self._next.kind != kind or (value is not None and self._next.value != value):
            return False
        self._at += 1
        return True

    def _skip_newlines(self) -> None:
        while self._took("newline"):
            pass

    # -- statements

    def file(self) -> File:
        file = File()
        self._skip_newlines()
        while self._next.kind != "end":
            if self._took("name", "targetScope"):
                self._take("=")
                file.scope = self._plain_text()
            else:
                file.statements.append(self._statement())
            self._take("newline")
            self._skip_newlines()
        return file

    def _statement(self) -> Statement:
        decorators = self._decorators()
        keyword = self._take("name")
        read: dict[str, Callable[[int, dict[str, tuple[Expression, ...]]], Statement]] = {
            "param": self._param,
            "var": self._var,
            "output": self._output,
            "resource": self._resource,
            "module": self._module,
        }
        if keyword.value not in read:
            raise BicepSyntaxError(keyword.line, f"{keyword.value} is no statement that is read here")
        return read[keyword.value](keyword.line, decorators)

    def _decorators(self) -> dict[str, tuple[Expression, ...]]:
        found: dict[str, tuple[Expression, ...]] = {}
        while self._took("@"):
            call = self._primary()
            if not isinstance(call, Call) or call.name in found:
                raise BicepSyntaxError(self._next.line, "a decorator is a call, and stands once")
            found[call.name] = call.arguments
            self._take("newline")
            self._skip_newlines()
        return found

    def _param(self, line: int, decorators: dict[str, tuple[Expression, ...]]) -> Param:
        name, kind = self._take("name").value, self._take("name").value
        return Param(line, name, decorators, kind, self._expression() if self._took("=") else None)

    def _var(self, line: int, decorators: dict[str, tuple[Expression, ...]]) -> Var:
        name = self._take("name").value
        self._take("=")
        return Var(line, name, decorators, self._value())

    def _output(self, line: int, decorators: dict[str, tuple[Expression, ...]]) -> Output:
        name, kind = self._take("name").value, self._take("name").value
        self._take("=")
        return Output(line, name, decorators, kind, self._value())

    def _resource(self, line: int, decorators: dict[str, tuple[Expression, ...]]) -> Resource:
        name, kind = self._take("name").value, self._plain_text()
        existing = self._took("name", "existing")
        self._take("=")
        return Resource(line, name, decorators, kind, existing, self._body())

    def _module(self, line: int, decorators: dict[str, tuple[Expression, ...]]) -> Module:
        name, path = self._take("name").value, self._plain_text()
        self._take("=")
        return Module(line, name, decorators, path, self._body())

    def _body(self) -> Expression:
        line = self._next.line
        if self._took("name", "if"):
            self._take("(")
            condition = self._expression()
            self._take(")")
            return Condition(line, condition, self._object())
        return self._loop(self._body) if self._next.kind == "[" else self._object()

    def _plain_text(self) -> str:
        token = self._take("text")
        text = Text(token.line, token.parts).plain
        if text is None:
            raise BicepSyntaxError(token.line, "no expression is allowed in this string")
        return text

    # -- expressions

    def expression_alone(self) -> Expression:
        """All tokens as one expression."""
        found = self._expression()
        self._skip_newlines()
        self._take("end")
        return found

    def _value(self) -> Expression:
        """Where a loop may stand."""
        following = self._tokens[self._at + 1]
        is_loop = self._next.kind == "[" and (following.kind, following.value) == ("name", "for")
        return self._loop(self._expression) if is_loop else self._expression()

    def _loop(self, body: Callable[[], Expression]) -> Loop:
        line = self._take("[").line
        self._take("name", "for")
        index = None
        if self._took("("):
            item = self._take("name").value
            self._take(",")
            index = self._take("name").value
            self._take(")")
        else:
            item = self._take("name").value
        self._take("name", "in")
        source = self._expression()
        self._take(":")
        made = Loop(line, item, index, source, body())
        self._take("]")
        return made

    def _expression(self) -> Expression:
        condition = self._binary(0)
        if not self._took("?"):
            return condition
        yes = self._expression()
        self._take(":")
        return Choice(condition.line, condition, yes, self._expression())

    def _binary(self, level: int) -> Expression:
        if level == len(_BINARY):
            return self._unary()
        left = self._binary(level + 1)
        while self._next.kind in _BINARY[level]:
            operator = self._take(self._next.kind)
            left = Binary(operator.line, operator.kind, left, self._binary(level + 1))
        return left

    def _unary(self) -> Expression:
        token = self._next
        if self._took("!") or self._took("-"):
            return Unary(token.line, token.kind, self._unary())
        return self._postfix()

    def _postfix(self) -> Expression:
        found = self._primary()
        while True:
            line = self._next.line
            if self._took("."):
                found = Member(line, found, self._take("name").value)
            elif self._took("::"):
                found = Member(line, found, self._take("name").value, nested=True)
            elif self._took("["):
                found = Index(line, found, self._expression())
                self._take("]")
            elif not self._took("!"):  # the assertion that something is not null says nothing here
                return found

    def _primary(self) -> Expression:
        token = self._next
        match token.kind:
            case "int":
                self._at += 1
                return Literal(token.line, int(token.value))
            case "text":
                self._at += 1
                return Text(token.line, token.parts)
            case "{":
                return self._object()
            case "[":
                return self._array()
            case "(":
                self._at += 1
                inner = self._expression()
                self._take(")")
                return inner
            case "name":
                return self._named()
        raise BicepSyntaxError(token.line, f"an expression expected, not {token.value or token.kind}")

    def _named(self) -> Expression:
        token = self._take("name")
        if token.value in _WORDS:
            return Literal(token.line, _WORDS[token.value])
        if self._took("=>"):
            return Lambda(token.line, token.value, self._expression())
        if not self._took("("):
            return Name(token.line, token.value)
        arguments: list[Expression] = []
        while not self._took(")"):
            self._skip_newlines()
            arguments.append(self._expression())
            self._skip_newlines()
            if self._next.kind != ")":
                self._take(",")
        return Call(token.line, token.value, tuple(arguments))

    def _array(self) -> Array:
        line = self._take("[").line
        items: list[Expression] = []
        self._skip_newlines()
        while not self._took("]"):
            items.append(self._expression())
            self._separator("]")
        return Array(line, tuple(items))

    def _object(self) -> Object:
        line = self._take("{").line
        entries: list[tuple[Text, Expression]] = []
        children: list[Resource] = []
        self._skip_newlines()
        while not self._took("}"):
            if self._next.kind == "@" or (self._next.value == "resource" and self._tokens[self._at + 1].kind == "name"):
                decorators = self._decorators()
                children.append(self._resource(self._take("name", "resource").line, decorators))
            else:
                entries.append(self._entry())
            self._separator("}")
        names = [key.plain for key, _ in entries if key.plain is not None]
        if len(names) != len(set(names)):
            raise BicepSyntaxError(line, "an object has a property twice")
        return Object(line, tuple(entries), tuple(children))

    def _entry(self) -> tuple[Text, Expression]:
        token = self._next
        if token.kind not in ("name", "text"):
            raise BicepSyntaxError(token.line, f"a property expected, not {token.value or token.kind}")
        self._at += 1
        key = Text(token.line, token.parts if token.kind == "text" else (token.value,))
        self._take(":")
        return key, self._value()

    def _separator(self, end: str) -> None:
        """Between two entries: a comma or line ends; before the end neither is needed."""
        if self._next.kind == end:
            return
        if not self._took(","):
            self._take("newline")
        self._skip_newlines()
