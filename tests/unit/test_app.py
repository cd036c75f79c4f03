"""Registering the handler: exactly one, of the right shape, or a TypeError at once."""

import functools
from typing import Any

import pytest

from resilience.app import NoHandler, ResponsesApp
from resilience.options import ResponsesServerOptions


async def coroutine(request: Any, context: Any, cancellation_signal: Any) -> None: ...


async def generator(request: Any, context: Any, cancellation_signal: Any) -> Any:
    yield request


async def with_defaults(
    request: Any, context: Any, cancellation_signal: Any, more: int = 1, *, other: int = 2
) -> None: ...


async def with_other_names(a: Any, b: Any, c: Any, /) -> None: ...


class Callables:
    async def method(self, request: Any, context: Any, cancellation_signal: Any) -> None: ...


@pytest.mark.parametrize("handler", [coroutine, generator, with_defaults, with_other_names, Callables().method])
def test_a_handler_of_three_parameters_is_taken_and_given_back(handler: Any) -> None:
    app = ResponsesApp()
    assert app.response_handler(handler) is handler
    assert app.handler == handler


def sync(request: Any, context: Any, cancellation_signal: Any) -> None: ...


async def none() -> None: ...
async def two(request: Any, context: Any) -> None: ...
async def four(request: Any, context: Any, cancellation_signal: Any, more: Any) -> None: ...
async def keyword_only(request: Any, context: Any, *, cancellation_signal: Any) -> None: ...
async def variadic(*arguments: Any) -> None: ...
async def optional(request: Any, context: Any, cancellation_signal: Any = None) -> None: ...


@pytest.mark.parametrize(
    "handler", [sync, none, two, four, keyword_only, variadic, optional, None, 7, lambda request, context, signal: None]
)
def test_anything_else_is_a_type_error(handler: Any) -> None:
    app = ResponsesApp()
    with pytest.raises(TypeError):
        app.response_handler(handler)
    with pytest.raises(NoHandler):
        _ = app.handler


def test_a_second_handler_is_a_type_error_and_the_first_one_stays() -> None:
    app = ResponsesApp()
    first: Any = app.response_handler(coroutine)
    with pytest.raises(TypeError):
        app.response_handler(generator)
    assert app.handler == first


def test_a_partial_of_a_handler_is_one() -> None:
    app = ResponsesApp()
    bound: Any = functools.partial(four, more=1)
    app.response_handler(bound)
    assert app.handler == bound


def test_an_app_has_the_default_options_unless_told() -> None:
    assert ResponsesApp().options == ResponsesServerOptions()
    options = ResponsesServerOptions(resilient_background=True)
    assert ResponsesApp(options).options is options
