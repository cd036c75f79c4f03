"""Plain stand-ins for the protobuf messages between host and worker.

`azure-functions-runtime` takes its message classes from the caller. In one process there is no wire, so the messages
need nothing but the constructors and `WhichOneof` that the runtime calls.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any


class Message(SimpleNamespace):
    """A message of any fields."""


class StatusResult(Message):
    """The outcome of a request."""

    Failure = 0
    Success = 1


class BindingInfo(Message):
    """A binding's type; directions and data types as the runtime compares them."""

    inout = 2
    out = 1
    undefined = 0


class TypedData:
    """One value of one kind (`string`, `bytes`, `json`, `http`, …), or of none."""

    def __init__(self, **one: Any) -> None:
        self._kind = next(iter(one), None)
        self.__dict__.update(one)

    def WhichOneof(self, _group: str) -> str | None:  # noqa: N802
        """The kind that is set."""
        return self._kind


class ParameterBinding:
    """A value for one parameter of a function."""

    def __init__(self, name: str, data: TypedData | None) -> None:
        self.name = name
        self.data = data

    def WhichOneof(self, _group: str) -> str:  # noqa: N802
        """Always the value itself: there is no shared memory here."""
        return "data"


PROTOS = SimpleNamespace(
    BindingInfo=BindingInfo,
    FunctionLoadResponse=Message,
    FunctionMetadataResponse=Message,
    InvocationResponse=Message,
    ParameterBinding=ParameterBinding,
    RpcException=Message,
    RpcFunctionMetadata=Message,
    RpcRetryOptions=Message,
    StatusResult=StatusResult,
    TypedData=TypedData,
    WorkerInitResponse=Message,
    WorkerMetadata=Message,
)

_NO_RETRY = Message(retry_count=0, max_retry_count=0, exception=None)


def worker_init(folder: str) -> Message:
    """The request that makes the runtime import and index the app."""
    init = Message(capabilities={}, function_app_directory=folder)
    return Message(request=Message(worker_init_request=init), properties={"protos": PROTOS, "host": "127.0.0.1"})


def function_load(function_id: str) -> Message:
    """The request that makes a function ready."""
    return Message(request=Message(function_load_request=Message(function_id=function_id)), properties={})


def invocation(
    invocation_id: str,
    function_id: str,
    parameter: str,
    data: TypedData,
    metadata: Mapping[str, TypedData],
    trace: tuple[str, str] = ("", ""),
) -> Message:
    """The request that runs a function once."""
    request = Message(
        invocation_id=invocation_id,
        function_id=function_id,
        input_data=[ParameterBinding(parameter, data)],
        trigger_metadata=metadata,
        trace_context=Message(trace_parent=trace[0], trace_state=trace[1], attributes={}),
        retry_context=_NO_RETRY,
    )
    return Message(request=Message(invocation_request=request), properties={})
