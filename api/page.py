"""The page at `/`: a playground and inspector, static files that talk to the API as any client does.

It is meant for a developer's machine. Setting `RESPONSES_PAGE`: `true` or `false`; without it the page is there only
under a local host (see `api.access`). Where it is off, neither the page nor the timeline it draws has a route.

Everything is served from here: no script, style, font or picture of another origin, and no inline script; the policy
in the headers holds the browser to that, and to turning text into markup nowhere. What the server says is text.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from api.access import is_local
from resilience.options import SettingError

SETTING = "RESPONSES_PAGE"

_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

_FOLDER = Path(__file__).resolve().parent / "static"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",
}


def is_enabled(environment: Mapping[str, str]) -> bool:
    """Whether the page is served.

    Raises:
        SettingError: The setting is neither true nor false.
    """
    text = environment.get(SETTING, "").strip()
    if not text:
        return is_local(environment)
    try:
        return _TRUTHS[text.lower()]
    except KeyError:
        raise SettingError(SETTING, text) from None


async def index(_request: Request) -> Response:
    """`GET /`."""
    return _answer(_INDEX)


async def file(request: Request) -> Response:
    """`GET /page/{name}`: one of the page's files; 404 for any other name."""
    return _answer(str(request.path_params.get("name")))


def _answer(name: str) -> Response:
    content = _files().get(name)
    if content is None:
        return Response("There is no such file.", 404, HEADERS, media_type="text/plain")
    return Response(content, 200, HEADERS, media_type=_TYPES[Path(name).suffix])


@cache
def _files() -> dict[str, bytes]:
    """All files by name; a name that is asked for never becomes a path."""
    return {path.name: path.read_bytes() for path in _FOLDER.iterdir() if path.suffix in _TYPES}
