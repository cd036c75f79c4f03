"""Builders of output items: which events make up an item, in which order."""

from protocol.builders.base import BaseOutputItemBuilder, OutputItemBuilder
from protocol.builders.code_interpreter import OutputItemCodeInterpreterCallBuilder
from protocol.builders.content import RefusalContentBuilder, TextContentBuilder
from protocol.builders.custom_tool_call import OutputItemCustomToolCallBuilder
from protocol.builders.function_call import OutputItemFunctionCallBuilder, OutputItemFunctionCallOutputBuilder
from protocol.builders.image_generation import OutputItemImageGenCallBuilder
from protocol.builders.lifecycle import BuilderLifecycleState, BuilderOrderError
from protocol.builders.mcp import OutputItemMcpCallBuilder, OutputItemMcpListToolsBuilder
from protocol.builders.message import OutputItemMessageBuilder
from protocol.builders.reasoning import OutputItemReasoningItemBuilder, ReasoningSummaryPartBuilder
from protocol.builders.search import OutputItemFileSearchCallBuilder, OutputItemWebSearchCallBuilder

__all__ = [
    "BaseOutputItemBuilder",
    "BuilderLifecycleState",
    "BuilderOrderError",
    "OutputItemBuilder",
    "OutputItemCodeInterpreterCallBuilder",
    "OutputItemCustomToolCallBuilder",
    "OutputItemFileSearchCallBuilder",
    "OutputItemFunctionCallBuilder",
    "OutputItemFunctionCallOutputBuilder",
    "OutputItemImageGenCallBuilder",
    "OutputItemMcpCallBuilder",
    "OutputItemMcpListToolsBuilder",
    "OutputItemMessageBuilder",
    "OutputItemReasoningItemBuilder",
    "OutputItemWebSearchCallBuilder",
    "ReasoningSummaryPartBuilder",
    "RefusalContentBuilder",
    "TextContentBuilder",
]
