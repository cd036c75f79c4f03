"""The builders a stream hands out: one method per kind of output item."""

from abc import ABC, abstractmethod
from typing import Literal

from protocol.builders.base import OutputItemBuilder, non_empty
from protocol.builders.code_interpreter import OutputItemCodeInterpreterCallBuilder
from protocol.builders.custom_tool_call import OutputItemCustomToolCallBuilder
from protocol.builders.function_call import OutputItemFunctionCallBuilder, OutputItemFunctionCallOutputBuilder
from protocol.builders.image_generation import OutputItemImageGenCallBuilder
from protocol.builders.mcp import OutputItemMcpCallBuilder, OutputItemMcpListToolsBuilder
from protocol.builders.message import OutputItemMessageBuilder
from protocol.builders.reasoning import OutputItemReasoningItemBuilder
from protocol.builders.script import Event, Json, Script
from protocol.builders.search import OutputItemFileSearchCallBuilder, OutputItemWebSearchCallBuilder
from protocol.ids import item_prefix, new_item_id


class ItemFactory[E, S](ABC):
    """Makes builders. Each takes the next `output_index` and a new id in the response's partition.

    `E` is what the builders' own generators give (an iterator of events, or an async one), `S` the text they take.
    Items must be added to the stream in the order in which their builders were made.
    """

    _response_id: str

    @abstractmethod
    def play(self, script: Script) -> E:
        """The events of a script."""

    @abstractmethod
    def emit_event(self, event: Event) -> Event:
        """Take an event into the stream and return it as it will be sent."""

    @abstractmethod
    def emit_item(self, step: Literal["added", "done"], output_index: int, item: Json, internal: Json) -> Event:
        """Take an `output_item.added` or `.done` into the stream."""

    @abstractmethod
    def _next_index(self) -> int:
        """Claim the next place in the output."""

    def add_output_item(self, item_id: str) -> OutputItemBuilder:
        """An item of any type under an id of your own.

        Raises:
            ValueError: the id is blank.
        """
        checked = non_empty(item_id, "item_id")
        return OutputItemBuilder(self, self._next_index(), checked)

    def add_output_item_message(self) -> OutputItemMessageBuilder[E, S]:
        """A message of the assistant."""
        return OutputItemMessageBuilder(self, *self._place("message"))

    def add_output_item_reasoning_item(self) -> OutputItemReasoningItemBuilder[E, S]:
        """Reasoning with a summary."""
        return OutputItemReasoningItemBuilder(self, *self._place("reasoning"))

    def add_output_item_function_call(self, name: str, call_id: str) -> OutputItemFunctionCallBuilder[E, S]:
        """A call of one of the caller's functions.

        Raises:
            ValueError: name or call id is blank.
        """
        return OutputItemFunctionCallBuilder(self, *self._place("function_call"), name, call_id)

    def add_output_item_function_call_output(self, call_id: str) -> OutputItemFunctionCallOutputBuilder:
        """What a function gave, when the server itself ran it.

        Raises:
            ValueError: the call id is blank.
        """
        return OutputItemFunctionCallOutputBuilder(self, *self._place("function_call_output"), call_id)

    def add_output_item_custom_tool_call(self, call_id: str, name: str) -> OutputItemCustomToolCallBuilder[E, S]:
        """A call of a tool that takes free text.

        Raises:
            ValueError: call id or name is blank.
        """
        return OutputItemCustomToolCallBuilder(self, *self._place("custom_tool_call"), call_id, name)

    def add_output_item_custom_tool_call_output(self) -> OutputItemBuilder:
        """What a custom tool gave: `call_id`, `output`."""
        return self._whole("custom_tool_call_output")

    def add_output_item_file_search_call(self) -> OutputItemFileSearchCallBuilder:
        """A search in files."""
        return OutputItemFileSearchCallBuilder(self, *self._place("file_search_call"))

    def add_output_item_web_search_call(self) -> OutputItemWebSearchCallBuilder:
        """A search on the web."""
        return OutputItemWebSearchCallBuilder(self, *self._place("web_search_call"))

    def add_output_item_code_interpreter_call(self) -> OutputItemCodeInterpreterCallBuilder[E, S]:
        """A run of code."""
        return OutputItemCodeInterpreterCallBuilder(self, *self._place("code_interpreter_call"))

    def add_output_item_image_gen_call(self) -> OutputItemImageGenCallBuilder:
        """The making of a picture (`image_generation_call`)."""
        return OutputItemImageGenCallBuilder(self, *self._place("image_generation_call"))

    def add_output_item_mcp_call(
        self, server_label: str, name: str, *, item_id: str | None = None
    ) -> OutputItemMcpCallBuilder[E, S]:
        """A call of an MCP server's tool; `item_id` to keep the id of an approval request, say.

        Raises:
            ValueError: server label, name or the given id is blank.
        """
        chosen = None if item_id is None else non_empty(item_id, "item_id").strip()
        index, new_id = self._place("mcp_call")
        return OutputItemMcpCallBuilder(self, index, chosen or new_id, server_label, name)

    def add_output_item_mcp_list_tools(self, server_label: str) -> OutputItemMcpListToolsBuilder:
        """The listing of an MCP server's tools.

        Raises:
            ValueError: the server label is blank.
        """
        return OutputItemMcpListToolsBuilder(self, *self._place("mcp_list_tools"), server_label)

    def add_output_item_mcp_approval_request(self) -> OutputItemBuilder:
        """A request to approve an MCP call: `server_label`, `name`, `arguments`."""
        return self._whole("mcp_approval_request")

    def add_output_item_mcp_approval_response(self) -> OutputItemBuilder:
        """The answer to such a request: `approval_request_id`, `approve`, optionally `reason`."""
        return self._whole("mcp_approval_response")

    def add_output_item_computer_call(self) -> OutputItemBuilder:
        """An action on a computer: `call_id`, `action`, `pending_safety_checks`, `status`."""
        return self._whole("computer_call")

    def add_output_item_computer_call_output(self) -> OutputItemBuilder:
        """What the computer showed: `call_id`, `output`, `status`."""
        return self._whole("computer_call_output")

    def add_output_item_local_shell_call(self) -> OutputItemBuilder:
        """A command for the caller's shell: `call_id`, `action`, `status`."""
        return self._whole("local_shell_call")

    def add_output_item_local_shell_call_output(self) -> OutputItemBuilder:
        """What that command gave: `output`, `status`."""
        return self._whole("local_shell_call_output")

    def add_output_item_function_shell_call(self) -> OutputItemBuilder:
        """Commands for a shell tool (`shell_call`): `call_id`, `action`, `environment`, `status`."""
        return self._whole("shell_call")

    def add_output_item_function_shell_call_output(self) -> OutputItemBuilder:
        """What those commands gave (`shell_call_output`): `call_id`, `output`, `status`."""
        return self._whole("shell_call_output")

    def add_output_item_apply_patch_call(self) -> OutputItemBuilder:
        """A patch to a file: `call_id`, `operation`, `status`."""
        return self._whole("apply_patch_call")

    def add_output_item_apply_patch_call_output(self) -> OutputItemBuilder:
        """How the patch went: `call_id`, `status`, `output`."""
        return self._whole("apply_patch_call_output")

    def add_output_item_structured_outputs(self) -> OutputItemBuilder:
        """Data of a shape agreed on: `output`, any JSON."""
        return self._whole("structured_outputs")

    def add_output_item_compaction(self) -> OutputItemBuilder:
        """A compacted conversation: `encrypted_content`."""
        return self._whole("compaction")

    def _whole(self, item_type: str) -> OutputItemBuilder:
        return OutputItemBuilder(self, *self._place(item_type), default_type=item_type)

    def _place(self, item_type: str) -> tuple[int, str]:
        return self._next_index(), new_item_id(item_prefix(item_type), self._response_id)
