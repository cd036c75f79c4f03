"""What may be registered as a handler: `async def handler(request, context, cancellation_signal)`, once."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from resilience import ResponsesApp


async def returning(request: Any, context: Any, cancellation_signal: Any) -> Any: ...


async def generating(request: Any, context: Any, cancellation_signal: Any) -> AsyncIterator[Any]:
    yield {}


async def with_an_option(request: Any, context: Any, cancellation_signal: Any, *, tone: str = "kind") -> Any: ...


def plain(request: Any, context: Any, cancellation_signal: Any) -> Any: ...


def plain_generator(request: Any, context: Any, cancellation_signal: Any) -> Iterator[Any]:
    yield {}


async def two(request: Any, context: Any) -> Any: ...


async def four(request: Any, context: Any, cancellation_signal: Any, more: Any) -> Any: ...


async def by_keyword(*, request: Any, context: Any, cancellation_signal: Any) -> Any: ...


@pytest.mark.parametrize("handler", [returning, generating, with_an_option])
def test_async_function_of_the_three_parameters_is_a_handler(handler: Callable[..., Any]) -> None:
    app = ResponsesApp()
    assert app.response_handler(handler) is handler
    assert app.handler is handler


@pytest.mark.parametrize("handler", [plain, plain_generator, two, four, by_keyword, None, "name"])
def test_anything_else_is_refused_when_it_is_registered(handler: Any) -> None:
    app = ResponsesApp()
    with pytest.raises(TypeError, match="response handler"):
        app.response_handler(handler)


def test_second_handler_is_refused() -> None:
    app = ResponsesApp()
    app.response_handler(returning)
    with pytest.raises(TypeError, match="already"):
        app.response_handler(generating)
