"""The app: options and the one handler, registered by the file that a user edits."""

import copy
import inspect
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, cast

from resilience.context import ResponseContext
from resilience.options import ResponsesServerOptions

type Events = AsyncIterable[Any] | Iterable[Any]
type Handler = Callable[[dict[str, Any], ResponseContext, Any], Events | Awaitable[Events]]


type Acceptor = Callable[[dict[str, Any], ResponseContext], Awaitable[dict[str, Any] | None]]


type InputTokenCounter = Callable[[dict[str, Any], ResponseContext], Awaitable[int]]
type Compactor = Callable[[dict[str, Any], ResponseContext], Awaitable[list[dict[str, Any]]]]


class NoHandler(RuntimeError):
    """The app has no handler: decorate one with @app.response_handler."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


class ResponsesApp:
    """Options and handler of a server.

    Example::

        app = ResponsesApp(ResponsesServerOptions(resilient_background=True))

        @app.response_handler
        async def answer(request, context, cancellation_signal):
            return TextResponse(context, request, text="Hello")
    """

    def __init__(self, options: ResponsesServerOptions | None = None) -> None:
        self.options = options or ResponsesServerOptions()
        self._handler: Handler | None = None
        self.acceptor: Acceptor | None = None
        """What answers for a turn that has to wait, if one is registered."""
        self.token_counter: InputTokenCounter | None = None
        """What counts the tokens of a request, if one is registered."""
        self.folder: Compactor | None = None
        """What makes few items of many, if one is registered."""

    @property
    def handler(self) -> Handler:
        """The registered handler.

        Raises:
            NoHandler: None is registered.
        """
        if self._handler is None:
            raise NoHandler
        return self._handler

    def with_handler(self, handler: Handler) -> "ResponsesApp":
        """This app, hooks and all, with another handler."""
        other = copy.copy(self)
        other._handler = handler
        return other

    def response_handler[H: Callable[..., Any]](self, handler: H) -> H:
        """Register ``async def handler(request, context, cancellation_signal)``; a decorator.

        The handler is an async generator of events, or returns a `TextResponse`, or an iterable of events, async or
        not.

        Raises:
            TypeError: It is not an async function of these three parameters, or one is registered already.
        """
        if self._handler is not None:
            raise TypeError("the app already has a response handler")
        if not (inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)):
            raise TypeError(f"the response handler {_name(handler)} must be an async function")
        try:
            inspect.signature(handler).bind(None, None, None)
            required = sum(_is_required(p) for p in inspect.signature(handler).parameters.values())
        except TypeError:
            required = -1
        if required != 3:
            raise TypeError(
                f"the response handler {_name(handler)} must take exactly (request, context, cancellation_signal)"
            )
        self._handler = cast("Handler", handler)
        return handler

    def response_acceptor[A: Callable[..., Any]](self, acceptor: A) -> A:
        """Register ``async def acceptor(request, context)``, which answers for a turn that has to wait; a decorator.

        It returns the fields of the response that the client gets at once, with status ``queued`` and no output, or
        None for the usual answer. Its `ValueError` refuses the turn with status 400; nothing is recorded then (S3).
        Foreground turns have no such answer: their clients wait for the turn itself.

        Raises:
            TypeError: It is not an async function of these two parameters, or one is registered already.
        """
        _check_hook("acceptor", acceptor, self.acceptor)
        self.acceptor = cast("Acceptor", acceptor)
        return acceptor

    def input_token_counter[C: Callable[..., Any]](self, counter: C) -> C:
        """Register ``async def counter(request, context)``, which counts the input tokens of a request; a decorator.

        ``context.get_input_items()`` and ``context.get_history()`` give what a handler would get. Without a counter the
        number is an estimate, see `resilience.token_count`. Its `ValueError` refuses the request with status 400.

        Raises:
            TypeError: It is not an async function of these two parameters, or one is registered already.
        """
        _check_hook("input token counter", counter, self.token_counter)
        self.token_counter = cast("InputTokenCounter", counter)
        return counter

    def compactor[C: Callable[..., Any]](self, compactor: C) -> C:
        """Register ``async def compactor(request, context)``, which makes few items of many; a decorator.

        It returns the items that the client goes on with in place of the history and the input of the request. Without
        a compactor see `resilience.compaction`. Its `ValueError` refuses the request with status 400.

        Raises:
            TypeError: It is not an async function of these two parameters, or one is registered already.
        """
        _check_hook("compactor", compactor, self.folder)
        self.folder = cast("Compactor", compactor)
        return compactor


def _check_hook(kind: str, hook: Callable[..., Any], registered: object) -> None:
    if registered is not None:
        raise TypeError(f"the app already has {'an' if kind[0] in 'aeiou' else 'a'} {kind}")
    try:
        inspect.signature(hook).bind(None, None)
    except TypeError as error:
        raise TypeError(f"the {kind} {_name(hook)} must take exactly (request, context)") from error
    if not inspect.iscoroutinefunction(hook):
        raise TypeError(f"the {kind} {_name(hook)} must be an async function")


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind in (
        parameter.POSITIONAL_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
    )


def _name(handler: object) -> str:
    return str(getattr(handler, "__qualname__", handler))
