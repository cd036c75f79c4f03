"""Headers that decide something: one that is there twice says nothing, for nobody knows which of them was checked."""

from starlette.requests import Request


def single_header(request: Request, name: str) -> str | None:
    """The value of a header that is there exactly once, else None."""
    values = request.headers.getlist(name)
    return values[0].strip() if len(values) == 1 else None
