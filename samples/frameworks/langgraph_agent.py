"""A LangGraph graph whose checkpoints and this server's never disagree.

Run it: `RESPONSES_AGENT=samples.frameworks.langgraph_agent:app make start`; `LANGGRAPH_CHECKPOINTS` names the file of
the graph's checkpoints, which all workers must be able to open.

A client sees one message for each node. The graph's state lasts over the turns of a chain, whether the client names a
`conversation` or a `previous_response_id`; a newer turn stops the graph after the node that it is at.

The graph's checkpointer and this server store at different moments, so a worker can die in between. What counts is
what this server stored: a persisted response names, in its internal metadata, the graph's checkpoint that goes with
its output, and the chain's metadata, stored together with a turn's outcome, names the one that the next turn begins
from. Every run of the graph begins from a checkpoint by name, never from "the latest". So a node that was lost with
its worker runs again, and what the graph has stored of it meanwhile is not looked at, like everything that a worker
stores which is no longer the owner, or a turn that was cancelled.
"""

import asyncio
import operator
import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph

from resilience import CreateResponse, ResponseContext, ResponseEventStream, ResponsesApp, ResponsesServerOptions

SECONDS_PER_NODE = 1.0

CHECKPOINT = "checkpoint_id"
NOTHING = "00000000-0000-0000-0000-000000000000"
"""A checkpoint that nobody ever makes: a graph that begins from it has an empty state."""

app = ResponsesApp(ResponsesServerOptions(resilient_background=True, steerable_conversations=True))


class State(TypedDict):
    """What the nodes know: the newest question, and all that they ever said in this chain."""

    question: str
    said: Annotated[list[str], operator.add]


async def plan(state: State) -> dict[str, Any]:
    """A node; a model's answer would stand where its sentence is."""
    return await say(state, f"Let me think about {state['question']!r}.")


async def draft(state: State) -> dict[str, Any]:
    """A node that goes on from what the one before it said."""
    return await say(state, f"There were {len(state['said'])} remarks before this one.")


async def conclude(state: State) -> dict[str, Any]:
    """The last node."""
    return await say(state, f"That is all about {state['question']!r}.")


async def say(state: State, sentence: str) -> dict[str, Any]:
    """A node's update of the state: one more remark, with its number."""
    await think()
    return {"said": [f"{len(state['said']) + 1}. {sentence}"]}


async def think() -> None:
    """The time that a model would take."""
    await asyncio.sleep(SECONDS_PER_NODE)


nodes = StateGraph(State).add_sequence([plan, draft, conclude])
nodes.add_edge(START, "plan")
nodes.add_edge("conclude", END)


@app.response_handler
async def handler(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncGenerator[dict[str, Any]]:
    """Run the graph from where this response, or else its chain, stands."""
    if context.persisted_response is None:
        stream = ResponseEventStream(response_id=context.response_id, request=request)
    else:
        stream = ResponseEventStream(response=context.persisted_response)
    yield stream.emit_created()
    yield stream.emit_in_progress()

    notes, chain = stream.internal_metadata, context.conversation_chain_metadata
    # Without input the graph goes on with the nodes that are left; with input it begins with the first one.
    question: Any = None if CHECKPOINT in notes else {"question": await context.get_input_text()}
    begin = notes.get(CHECKPOINT) or chain.get(CHECKPOINT) or NOTHING

    async with AsyncSqliteSaver.from_conn_string(checkpoints_file()) as saver:
        config = RunnableConfig(configurable={"thread_id": context.conversation_chain_id, CHECKPOINT: begin})
        if begin != NOTHING and await saver.aget_tuple(config) is None:
            raise LookupError(f"The graph's checkpoint {begin} is gone.")
        updates: list[dict[str, Any]] = []
        # "sync": a checkpoint that is announced here is stored.
        steps: Any = nodes.compile(checkpointer=saver).astream(
            question, config, stream_mode=["updates", "checkpoints"], durability="sync"
        )
        async with aclosing(steps):
            async for kind, data in steps:
                if kind == "updates":
                    updates.append(data)
                elif updates:
                    for remark in remarks_in(updates):
                        for event in stream.output_item_message(remark):
                            yield event
                    updates = []
                    notes[CHECKPOINT] = data["config"]["configurable"][CHECKPOINT]
                    yield stream.checkpoint()
                    if cancellation_signal.is_set():
                        break
                    if context.shutdown.is_set():
                        with suppress(RuntimeError):  # in the foreground: hurry up instead
                            await context.exit_for_recovery()

    if CHECKPOINT in notes and not context.client_cancelled:
        chain[CHECKPOINT] = notes[CHECKPOINT]
    yield stream.emit_incomplete() if cancellation_signal.is_set() else stream.emit_completed()


def remarks_in(updates: list[dict[str, Any]]) -> list[str]:
    """What the nodes of one step of the graph said."""
    return [remark for update in updates for change in update.values() for remark in change["said"]]


def checkpoints_file() -> str:
    """Where the graph's checkpoints lie."""
    return os.environ.get("LANGGRAPH_CHECKPOINTS") or str(Path(tempfile.gettempdir()) / "langgraph_agent.sqlite")
