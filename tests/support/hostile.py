"""Requests of a client that means no good, for hypothesis.

They start from what the server's own description says is valid and go wrong from there: in one field, in the depth, in
the bytes, in the path, the query, the headers, the framing.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

from hypothesis import strategies as st

from protocol import ids
from protocol.models import CreateResponse
from tests.support.described import SCHEMAS, example
from tests.support.raw_http import Framing, RawRequest

UNKNOWN_ID = ids.new_response_id(ids.new_partition())
FIELDS = sorted([*get_type_hints(CreateResponse), "conversation_id", "internal_metadata", "client_metadata", ""])
PATHS = (b"/v1/responses", b"/responses")
POSTED = (b"/v1/responses/input_tokens", b"/v1/responses/compact", b"/v1/conversations", b"/conversations")
"""What else takes a body."""
UNKNOWN_CONVERSATION = ids.new_conversation_id()


@dataclass(frozen=True)
class Verbatim:
    """JSON text, or what pretends to be, that stands as it is."""

    text: bytes

    def __repr__(self) -> str:
        return f"Verbatim({len(self.text)} bytes: {self.text[:60]!r})"


@dataclass(frozen=True)
class Doubled:
    """An object with the same key twice."""

    key: str
    values: tuple[Any, Any]


def written(value: Any) -> bytes:
    """The value as JSON, with what Python's own encoder would not write."""
    match value:
        case Verbatim(text):
            return text
        case Doubled(key, (one, other)):
            return b"{%b: %b, %b: %b}" % (written(key), written(one), written(key), written(other))
        case dict():
            return b"{" + b", ".join(written(str(key)) + b": " + written(part) for key, part in value.items()) + b"}"
        case list():
            return b"[" + b", ".join(map(written, value)) + b"]"
    return json.dumps(value).encode()


def nested(opening: bytes, closing: bytes, depth: int) -> Verbatim:
    """A value so many levels deep."""
    return Verbatim(opening * depth + b"1" + closing * depth)


UGLY_TEXTS = (
    "",
    " ",
    "\x00",
    "a\x00b",
    "\u2028\u2029\x85",
    "\ufeff",
    "\uffff",
    "\ud800",
    "\udfff\ud800",
    "𝒳" * 40,
    "e\u0301" * 40,
    "\u202e",
    "null",
    "../../etc/passwd",
    "'; DROP TABLE responses; --",
    "${jndi:ldap://x}",
    "<script>",
    "%00%ff%2e%2e%2f",
    "\r\nx-injected: 1",
    "data: x\n\nevent: response.completed\n\n",
    "__proto__",
    "response.completed",
    "resp_",
    UNKNOWN_ID,
    UNKNOWN_ID + "0",
)
UGLY_LITERALS = (
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1e308", b"1e-400", b"-0", b"-0.0", b"1.0", b"01"),
    *(b"+1", b".5", b"1.", b"0x10", b"1_000", b"undefined", b"True", b"'x'", b"", b"[1,]", b'{"a":}', b"/**/1"),
    *(
        b'"\xff\xfe"',
        b'"\xc0\xaf"',
        b'"\xed\xa0\x80"',
        b'"\xf5\x80\x80\x80"',
        b'"\\ud800"',
        b'"\\x"',
        b'"\\u12"',
        b'"\x01"',
    ),
    *(str(2**63).encode(), str(2**64).encode(), str(-(2**63) - 1).encode()),
)
DEPTHS = (3, 30, 128, 200, 225, 229, 230, 231, 240, 253, 254, 255, 256, 1000, 1023, 1025, 20_000)

LENGTHS = (65, 513, 5000, 40_000)

long_texts = st.builds(lambda letter, length: letter * length, st.sampled_from("x9é"), st.sampled_from(LENGTHS))
long_numbers = st.builds(
    lambda start, length: Verbatim(start + b"9" * length),
    st.sampled_from((b"", b"-", b"0.", b"1e")),
    st.sampled_from((400, 5000)),
)
texts = st.sampled_from(UGLY_TEXTS) | st.text(st.characters(), max_size=20) | long_texts
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((-1, 0, 15, 16, 20, 21, 100, 2**31, 2**53 + 1, 2**63 - 1, 2**63))
    | st.floats()
    | texts
    | st.sampled_from(UGLY_LITERALS).map(Verbatim)
    | long_numbers
)
deep = st.builds(
    nested,
    st.just(b"["),
    st.just(b"]"),
    st.sampled_from(DEPTHS),
) | st.builds(nested, st.just(b'{"a":'), st.just(b"}"), st.sampled_from(DEPTHS))
huge = st.sampled_from((70_000, 1 << 20, 5 << 20)).flatmap(
    lambda size: st.sampled_from(
        (
            Verbatim(b'"' + b"x" * size + b'"'),
            Verbatim(b'"' + "é".encode() * (size // 2) + b'"'),
            Verbatim(b"[" + b"0," * (size // 2) + b"0]"),
            Verbatim(b'{"' + b"k" * size + b'": 1}'),
        )
    )
)
small = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts | st.sampled_from(("type", "id", "role", "content")), inner, max_size=4)
        | st.builds(Doubled, texts, st.tuples(inner, inner))
    ),
    max_leaves=6,
)
# Few of the huge: they cost a hundred times the others.
anything = st.integers(0, 79).flatmap(lambda kind: huge if kind == 79 else deep if kind > 70 else small)


def _examples(name: str) -> list[Any]:
    return [example(choice) for choice in SCHEMAS[name]["anyOf"]]


ITEMS = _examples("ItemParam")
PARTS = _examples("PartParam")
TOOLS = _examples("ToolParam")
CHOICES = ["none", "auto", "required", *(example(choice) for choice in SCHEMAS["ToolChoiceParam"]["anyOf"][1]["anyOf"])]
FORMATS = [example(choice) for choice in SCHEMAS["TextParam"]["properties"]["format"]["anyOf"][0]["anyOf"]]
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "metadata": st.just({"k": "v"}),
    "temperature": st.sampled_from((0, 1.5, 2)),
    "top_p": st.sampled_from((0, 0.5, 1)),
    "top_logprobs": st.integers(0, 20),
    "max_output_tokens": st.sampled_from((16, 2**40)),
    "reasoning": st.just({"effort": "low", "summary": None}),
    "text": st.sampled_from(FORMATS).map(lambda form: {"format": form}),
    "tools": st.lists(st.sampled_from(TOOLS), max_size=3),
    "tool_choice": st.sampled_from(CHOICES),
    "include": st.just(["reasoning.encrypted_content"]),
    "agent_reference": st.sampled_from(("agent", {"type": "agent_reference", "name": "a", "version": "1"})),
    "conversation": st.sampled_from(("conv_1", {"id": "c"})),
    "previous_response_id": st.just(UNKNOWN_ID),
    "of_a_newer_client": st.just([{"a": 1}]),
    "background": st.booleans(),
    "store": st.booleans(),
    "stream": st.booleans(),
}
inputs = (
    st.text(max_size=10)
    | st.lists(st.sampled_from(ITEMS), max_size=3)
    | st.lists(st.sampled_from(PARTS), max_size=3).map(lambda parts: [{"role": "user", "content": parts}])
)
valid = st.fixed_dictionaries({"input": inputs}, optional=OPTIONS)


def paths_in(value: Any) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside this one, itself included."""
    yield ()
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from ((key, *rest) for rest in paths_in(part))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with something else at the end of the way; with Ellipsis, nothing."""
    if not path:
        return new
    key, *rest = path
    dropped = new is ... and not rest
    if isinstance(value, list):
        return value[:key] + ([] if dropped else [put(value[key], tuple(rest), new)]) + value[key + 1 :]
    return {
        name: put(part, tuple(rest), new) if name == key else part
        for name, part in value.items()
        if not (dropped and name == key)
    }


@st.composite
def mutated(draw: st.DrawFn, values: st.SearchStrategy[Any] = valid) -> Any:
    """A valid body with one to three things wrong."""
    value = draw(values)
    for _ in range(draw(st.integers(1, 3))):
        places = [path for path in paths_in(value) if path]
        if not places:
            break
        value = put(value, draw(st.sampled_from(places)), draw(st.just(...) | anything))
    return value


field_attacks = st.builds(
    lambda base, fields: {**base, **fields},
    valid,
    st.dictionaries(st.sampled_from(FIELDS), anything, min_size=1, max_size=3),
)


@st.composite
def broken_bytes(draw: st.DrawFn) -> bytes:
    """A valid body whose bytes were damaged."""
    body = written(draw(valid))
    start, end = sorted(draw(st.tuples(st.integers(0, len(body)), st.integers(0, len(body)))))
    return body[:start] + draw(st.binary(max_size=4)) + body[end:]


bodies = st.one_of(
    field_attacks.map(written),
    mutated().map(written),
    mutated().map(written),
    anything.map(written),
    st.builds(Doubled, st.sampled_from(FIELDS), st.tuples(anything, anything)).map(written),
    broken_bytes(),
    st.binary(max_size=40),
    st.sampled_from(
        (
            b"",
            b" ",
            b"\n\t\r ",
            b"\xef\xbb\xbf{}",
            '{"input": "x"}'.encode("utf-16"),
            b"{}{}",
            b'{"input":"x"}\x00',
            b"null",
        )
    ),
    valid.map(written),
)
content_types = st.sampled_from(
    (
        b"application/json",
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"application/json; charset=utf-16",
        b"",
        b"\xff",
        b"application/json, text/html",
    )
)


def responses_of(*known: str) -> st.SearchStrategy[bytes]:
    """What may stand where a path has a response's id; `known` are ids of responses that exist."""
    shaped = (*known, UNKNOWN_ID, UNKNOWN_ID[:-1], UNKNOWN_ID + "0", "resp_" + "é" * 50, "RESP_" + UNKNOWN_ID[5:])
    ugly = (*UGLY_TEXTS, ".", "..", "cancel", "input_items")
    encoded = st.sampled_from(shaped + ugly).map(lambda text: _percent(text.encode("utf-8", "surrogatepass")))
    plain = st.sampled_from(shaped).map(str.encode)
    long = st.sampled_from((b"x", b"%41", b"../")).map(lambda part: part * 3400)
    rude = st.sampled_from(
        (
            b"%",
            b"%zz",
            b"%00",
            b"%ff",
            b"%2F",
            b"%2f..%2f",
            b"%252e",
            b"a%0d%0ab",
            b"a;b=c",
            b"a//b",
            b"\xc3\xa9",
            b"~",
            b"{id}",
        )
    )
    return plain | plain | encoded | long | rude | st.binary(min_size=1, max_size=12).map(_percent)


def _percent(data: bytes) -> bytes:
    return "".join(f"%{byte:02x}" for byte in data).encode()


query_values = st.sampled_from(
    (
        *b"0 -1 -2 1 100 101 1.5 1e3 +1 %2b1 %20 NaN true false TRUE maybe asc desc ASC msg_x".split(),
        *b"%00 %ff % %F0%9F%98%80 \xd9\xa3 %D9%A3 reasoning.encrypted_content".split(),
        *(b"", b"9" * 5000, b"-" + b"9" * 400, UNKNOWN_ID.encode()),
    )
)
query_names = st.sampled_from(b"starting_after limit order after before stream include include[] x %00".split())
queries = st.lists(st.tuples(query_names, query_values).map(b"=".join), min_size=1, max_size=4).map(b"&".join)

header_values = st.sampled_from(
    (
        b"",
        b"x",
        b"-",
        b"a b",
        b"<script>",
        b"x" * 64,
        b"x" * 65,
        b"x" * 5000,
        b"\xff\xfe",
        "é".encode(),
        b"a,b",
        b"{}",
        b'"',
        b"..",
        b"\t",
        b"0",
        b"%00",
    )
)
header_names = st.sampled_from(
    (
        b"x-request-id idempotency-key x-client-a X-Client-Request-Id x-client- authorization accept last-event-id "
        b"cookie traceparent accept-encoding x-forwarded-for origin x-ms-client-principal openai-beta user-agent range"
    ).split()
)
headers = st.lists(st.tuples(header_names, header_values), max_size=4).map(tuple)

framings: st.SearchStrategy[Framing] = st.sampled_from(("length", "length", "length", "chunked", "short"))


def requests(*known: str) -> st.SearchStrategy[RawRequest]:
    """Hostile requests; `known` are ids of responses and conversations that exist."""
    conversation = st.sampled_from(
        (*(each for each in known if each.startswith(ids.CONVERSATION_PREFIX)), UNKNOWN_CONVERSATION, "conv_1", "%00")
    ).map(str.encode)
    in_conversations = st.builds(
        lambda start, middle, end: start + b"/" + middle + end,
        st.sampled_from((b"/v1/conversations", b"/conversations")),
        conversation,
        st.sampled_from((b"", b"/items", b"/items/msg_1", b"/items/../x", b"/", b"/nothing")),
    )
    one = responses_of(*known)
    prefix = st.sampled_from(PATHS)
    tail = st.sampled_from((b"", b"/cancel", b"/input_items", b"/", b"/cancel/", b"/nothing", b"/../x"))
    methods = st.sampled_from(("GET", "GET", "DELETE", "POST", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE"))
    about_one = st.builds(lambda start, middle, end: start + b"/" + middle + end, prefix, one, tail)
    asked = st.builds(
        lambda start, middle, end, query: start + b"/" + middle + end + b"?" + query,
        prefix,
        st.sampled_from((*known, UNKNOWN_ID)).map(str.encode) | one,
        st.sampled_from((b"", b"/input_items", b"/cancel")),
        queries,
    )
    json_headers = st.builds(lambda kind, more: ((b"content-type", kind), *more), content_types, headers)
    create = st.builds(
        RawRequest,
        method=st.just("POST"),
        target=prefix
        | st.builds(lambda start, query: start + b"?" + query, prefix, queries)
        | st.sampled_from(POSTED)
        | in_conversations,
        headers=json_headers,
        body=bodies,
        framing=framings,
    )
    read = st.builds(
        RawRequest,
        method=methods,
        target=about_one | asked | in_conversations,
        headers=headers,
        framing=st.just("none"),
    )
    odd = st.builds(
        RawRequest,
        method=methods,
        target=st.sampled_from(
            (
                *PATHS,
                b"/healthz",
                b"/readyz",
                b"/v1/openapi.json",
                b"/",
                b"/v1",
                b"/v1/",
                b"/v1/responses/",
                b"//v1/responses",
                b"/V1/RESPONSES",
                b"/v2/responses",
                b"*",
                b"/v1/responses?" + b"x" * 5000,
            )
        ),
        headers=headers,
        body=st.sampled_from((b"", b"{}", b"junk")),
    )
    return st.one_of(create, create, create, read, read, odd)
