"""The typed names against the `openai` package's types."""

from typing import Any, get_args, get_type_hints

import pytest
from openai.types.responses import Response
from openai.types.responses.response_create_params import ResponseCreateParamsBase

from protocol import events, items, models
from protocol.requests import parse_create


def test_every_parameter_of_a_request_has_a_name() -> None:
    assert set(get_type_hints(ResponseCreateParamsBase)) <= set(models.CreateResponse.__annotations__)


@pytest.mark.parametrize("name", sorted(get_type_hints(models.CreateResponse)))
def test_every_parameter_of_a_request_may_be_null(name: str) -> None:
    assert parse_create(b'{"%b": null}' % name.encode()) == {name: None}


def test_every_field_of_a_response_has_a_name() -> None:
    assert set(Response.model_fields) <= set(models.Response.__annotations__)


def test_every_field_of_an_event_has_a_name() -> None:
    named = set(models.ResponseStreamEvent.__annotations__)
    common = {
        field
        for name, fields in events.REQUIRED.items()
        for field in fields
        if not name.startswith(("response.shell_call", "response.image_generation_call"))
    }

    assert common <= named


def test_every_item_type_with_a_name_has_the_status_that_items_give_it() -> None:
    without = {"reasoning", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "compaction"}
    types: set[Any] = {get_args(get_type_hints(kind)["type"])[0] for kind in get_args(models.OutputItem)}

    assert types - items.WITH_STATUS == without | {"structured_outputs"}
