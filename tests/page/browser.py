"""A headless Chromium, driven over its DevTools protocol.

Settings: `CHROMIUM` names the executable where it has an unusual name or place.

`python -m tests.page.browser` says whether there is one, for `make test-page`.
"""

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
MISSING = "No Chromium was found: install it (on Debian: apt-get install chromium) or name its executable in CHROMIUM."
START_SECONDS = 30.0
STOP_SECONDS = 10.0
ANSWER_SECONDS = 30.0
UNTIL_SECONDS = 30.0
POLL_SECONDS = 0.05
MAX_MESSAGE = 64 << 20

_OPTIONS = (
    *("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--no-default-browser-check"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio", "--use-mock-keychain"),
)

type Json = dict[str, Any]


class BrowserFailed(Exception):
    """The browser did not do what a test asked of it."""


def executable() -> str | None:
    """Where Chromium is, if it is there."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Page:
    """One tab. `problems` holds what its scripts threw, what its console complained of, and what its policy blocked."""

    socket: aiohttp.ClientWebSocketResponse
    session_id: str
    problems: list[str] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(100))
    _answers: dict[int, asyncio.Future[Json]] = field(default_factory=dict)

    async def call(self, method: str, **parameters: Any) -> Json:
        """One command of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json(
            {"id": number, "method": method, "params": parameters, "sessionId": self.session_id}
        )
        async with asyncio.timeout(ANSWER_SECONDS):
            result = await answer
        if "error" in result:
            raise BrowserFailed(f"{method}: {result['error']}")
        return dict(result["result"])

    def take(self, message: Json) -> None:
        """What the browser says of this tab."""
        if (answer := self._answers.pop(message.get("id", -1), None)) is not None:
            answer.set_result(message)
            return
        told = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = told["exceptionDetails"]
                self.problems.append(str(details.get("exception", {}).get("description") or details["text"]))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "assert"):
                self.problems.append(json.dumps(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] == "error" and told["entry"]["source"] != "network":
                self.problems.append(told["entry"]["text"])
            case _:
                pass

    async def goto(self, url: str) -> None:
        """Open an address and wait until its scripts have run."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = await self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
            allowUnsafeEvalBlockedByCSP=False,
        )
        if "exceptionDetails" in result:
            raise BrowserFailed(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def until(self, expression: str, seconds: float = UNTIL_SECONDS) -> Any:
        """The first truthy value of an expression in the page."""
        deadline = time.monotonic() + seconds
        while not (value := await self._look(expression)):
            if time.monotonic() > deadline:
                shown = await self.evaluate("document.body.innerText")
                raise BrowserFailed(f"not within {seconds} s: {expression}\n{self.problems}\n{shown}")
            await asyncio.sleep(POLL_SECONDS)
        return value

    async def _look(self, expression: str) -> Any:
        try:
            return await self.evaluate(expression)
        except BrowserFailed:  # between two documents there is nothing to look at
            return None

    async def click(self, identity: str) -> None:
        """Click in the middle of the element with that id, as a mouse does, once it is enabled."""
        await self.until(f"!document.getElementById({identity!r}).disabled")
        place = await self.evaluate(
            f"(() => {{ const e = document.getElementById({identity!r}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    async def write(self, identity: str, text: str) -> None:
        """Put a text into a field in place of what is there, as a keyboard does."""
        await self.evaluate(f"(() => {{ const e = document.getElementById({identity!r}); e.focus(); e.select(); }})()")
        if text:
            await self.call("Input.insertText", text=text)
        else:
            await self.press("Delete", 46)

    async def press(self, key: str, code: int, modifiers: int = 0, text: str = "") -> None:
        """One key; modifiers as the protocol counts them (2 is Ctrl, 8 is Shift)."""
        common: Json = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        await self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def tick(self, identity: str, on: bool) -> None:
        """Set a checkbox by clicking it."""
        if await self.evaluate(f"document.getElementById({identity!r}).checked") is not on:
            await self.click(identity)

    async def text(self, identity: str) -> str:
        """The text of the element with that id."""
        return str(await self.evaluate(f"document.getElementById({identity!r}).textContent"))

    async def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Take the size of a screen, and a colour scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme, still])

    async def photograph(self, path: Path) -> None:
        """A PNG of what is on the screen."""
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))  # noqa: ASYNC240 (a small file)


@contextmanager
def running() -> Iterator[str]:
    """A browser with a profile of its own; the address of its protocol."""
    found = executable()
    if found is None:
        raise BrowserFailed(MISSING)
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        # The browser's sandbox does not work for root, which is who runs in a container.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        with (Path(profile) / "log").open("wb") as log:
            process = subprocess.Popen(
                [found, *_OPTIONS, *sandbox, f"--user-data-dir={profile}", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield _address(process, Path(profile))
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    told = profile / "DevToolsActivePort"
    while not (told.exists() and len(lines := told.read_text().split()) == 2):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BrowserFailed(f"Chromium did not start.\n{(profile / 'log').read_text(errors='replace')}")
        time.sleep(POLL_SECONDS)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"


@asynccontextmanager
async def browsing(address: str) -> AsyncIterator[Page]:
    """A tab of a running browser that shares nothing with any other: no storage, no cookies, no cache."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(address, max_msg_size=MAX_MESSAGE) as socket,
    ):
        context, tab = await _open_tab(socket)
        page = Page(socket, tab)
        listening = asyncio.create_task(_listen(socket, page))
        try:
            for domain in ("Page", "Runtime", "Log"):
                await page.call(f"{domain}.enable")
            await page.look()
            yield page
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await _ask(socket, "Target.disposeBrowserContext", browserContextId=context)


async def _open_tab(socket: aiohttp.ClientWebSocketResponse) -> tuple[str, str]:
    context = (await _ask(socket, "Target.createBrowserContext"))["browserContextId"]
    target = await _ask(socket, "Target.createTarget", url="about:blank", browserContextId=context)
    session = await _ask(socket, "Target.attachToTarget", targetId=target["targetId"], flatten=True)
    return str(context), str(session["sessionId"])


async def _ask(socket: aiohttp.ClientWebSocketResponse, method: str, **parameters: Any) -> Json:
    """One command to the browser itself, while nobody else listens."""
    await socket.send_json({"id": 1, "method": method, "params": parameters})
    while (message := await socket.receive_json(timeout=ANSWER_SECONDS)).get("id") != 1:
        pass
    return dict(message["result"])


async def _listen(socket: aiohttp.ClientWebSocketResponse, page: Page) -> None:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            page.take(json.loads(message.data))


if __name__ == "__main__":
    sys.exit(0 if executable() else MISSING)
