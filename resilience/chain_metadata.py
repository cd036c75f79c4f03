"""What the turns of a chain keep for one another: a small mapping, stored with the chain (S7).

Format, as stored: one JSON object, `{namespace: {key: value}}`; the namespace "" is the mapping itself. It is read
with the chain when a turn begins, and stored by `flush`, by a hand-over and together with the outcome. A turn is the
chain's only one, so that nobody else writes meanwhile; storage refuses a turn that lost its run.
"""

from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from protocol import jsonio

MAX_METADATA_BYTES = 32 * 1024
"""Of all namespaces of a chain together, as JSON."""

type Store = Callable[[bytes], Awaitable[None]]


class MetadataTooLarge(ValueError):
    """The chain's metadata would be larger than 32 KiB: keep references here, and what they refer to elsewhere."""

    def __init__(self, size: int) -> None:
        super().__init__(self.__doc__)
        self.size = size
        """Bytes that it would have had."""


async def nowhere(data: bytes) -> None:
    """Store nothing: nobody else will ever read it."""


class ChainMetadataNamespace(MutableMapping[str, Any]):
    """One namespace of a chain's metadata; a mapping from names to JSON values.

    Names that begin with ``_`` are the server's own.

    Raises:
        ValueError: A name begins with ``_``, or a value is none of JSON's: it would not come back as it was put in.
        MetadataTooLarge: All namespaces together would be larger than `MAX_METADATA_BYTES`.
    """

    def __init__(self, chain: "ConversationChainMetadata | None", values: dict[str, Any]) -> None:
        self._chain = chain
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        _check_value(name, value)
        before = self._values.get(name)
        present = name in self._values
        self._values[name] = value
        try:
            self._root.to_bytes()
        except ValueError:
            if present:
                self._values[name] = before
            else:
                del self._values[name]
            raise

    def __delitem__(self, name: str) -> None:
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    async def flush(self) -> None:
        """Store what was changed, before this returns.

        Raises:
            MetadataTooLarge: A value grew after it was put here.
            StorageError: It is not stored.
        """
        await self._root.flush()

    @property
    def _root(self) -> "ConversationChainMetadata":
        assert self._chain is not None
        return self._chain


class ConversationChainMetadata(ChainMetadataNamespace):
    """A chain's metadata: the mapping without a namespace; called with a name, that namespace.

    Example::

        metadata = context.conversation_chain_metadata
        metadata["turns"] = metadata.get("turns", 0) + 1
        metadata("billing")["charged"] = True
        await metadata.flush()
    """

    def __init__(self, stored: bytes = b"", store: Store = nowhere) -> None:
        self._namespaces: dict[str, dict[str, Any]] = jsonio.loads(stored) if stored else {}
        super().__init__(None, self._namespaces.setdefault("", {}))
        self._store = store
        self._flushed: bytes | None = self.to_bytes()
        """What is stored; None while that is not known."""

    def __call__(self, namespace: str) -> ChainMetadataNamespace:
        """A namespace of its own, for a library used by a handler, say.

        Raises:
            ValueError: Its name is empty or begins with ``_``.
        """
        _check_name(namespace)
        if not namespace:
            raise ValueError("a namespace needs a name")
        return ChainMetadataNamespace(self, self._namespaces.setdefault(namespace, {}))

    def to_bytes(self) -> bytes:
        """The stored form.

        Raises:
            MetadataTooLarge: It has more than `MAX_METADATA_BYTES`.
            ValueError: A value is none of JSON's.
        """
        data = jsonio.dumps({name: values for name, values in self._namespaces.items() if values})
        if len(data) > MAX_METADATA_BYTES:
            raise MetadataTooLarge(len(data))
        return data

    def changed(self) -> bytes | None:
        """The stored form, unless it is stored already.

        Raises:
            ValueError: As `to_bytes`.
        """
        data = self.to_bytes()
        return None if data == self._flushed else data

    async def flush(self) -> None:
        data = self.changed()
        if data is not None:
            self._flushed = None  # a flush that fails, or is cut off, may have been stored or may be yet
            await self._store(data)
            self._flushed = data

    @property
    def _root(self) -> "ConversationChainMetadata":
        return self


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise ValueError(f"names are texts, not {type(name).__name__}")
    if name.startswith("_"):
        raise ValueError(f"the name {name!r} begins with '_': such names are the server's own")


def _check_value(name: str, value: object) -> None:
    # What the encoder can write is more than JSON can carry: dates, tuples, and NaN among others.
    if jsonio.loads(jsonio.dumps(value)) != value:
        raise ValueError(f"the value of {name!r} would not come back from JSON as it is")
