"""A local host and a browser for the page's tests."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from tests.page.browser import MISSING, Page, browsing, executable, running
from tests.support.azurite import AzuriteServer
from tests.support.host import ROOT, FunctionHost
from tests.support.servers import Deployment, deployment

AGENT = "tests.page.agent:app"
# The session must not leave this machine, whatever keys the environment holds.
NO_MODEL = {"OPENAI_API_KEY": "", "AZURE_OPENAI_API_KEY": ""}


@dataclass
class Tab:
    """The page of a host in a browser."""

    page: Page
    host: FunctionHost

    async def open(self, fragment: str = "") -> None:
        """Load the page and wait until it found its server."""
        await self.page.goto(f"{self.host.base_url}/{fragment}")
        await self.shows("server", "server ready")

    async def shows(self, identity: str, text: str) -> None:
        """Wait until the element's text holds that one."""
        await self.page.until(f"document.getElementById({identity!r}).textContent.includes({text!r})")

    async def send(self, prompt: str, *, background: bool = True, stream: bool = True, store: bool = True) -> None:
        """Fill in the form and send it."""
        for identity, on in (("background", background), ("stream", stream), ("store", store)):
            await self.page.tick(identity, on)
        await self.page.write("prompt", prompt)
        await self.page.click("send")

    async def text(self, identity: str) -> str:
        """The text of an element."""
        return await self.page.text(identity)

    async def saw(self, events: int) -> None:
        """Wait until at least so many events are listed."""
        await self.page.until(f"document.querySelectorAll('#events .number').length >= {events}")

    async def ends(self, status: str = "completed") -> None:
        """Wait until the shown response has that status and its stream is over."""
        await self.shows("status", status)
        await self.page.until("document.getElementById('link').textContent === ''")

    async def numbers(self) -> list[int]:
        """The numbers of the listed events, in their order."""
        found = await self.page.evaluate("[...document.querySelectorAll('#events .number')].map(b => +b.textContent)")
        return [int(number) for number in found]


@pytest.fixture(scope="session")
def browser() -> Iterator[str]:
    """A browser for all tests; its address."""
    if executable() is None:
        pytest.exit(MISSING, 1)
    with running() as address:
        yield address


@pytest.fixture(scope="session")
def page_deployment(azurite: AzuriteServer) -> Iterator[Deployment]:
    with deployment(azurite, agent=AGENT, RESPONSES_EAGER_START="true", **NO_MODEL) as made:
        yield made


@pytest.fixture(scope="session")
def host(page_deployment: Deployment) -> FunctionHost:
    """A host that nobody kills."""
    return page_deployment.start_blocking()


@pytest.fixture
async def supervised(page_deployment: Deployment) -> AsyncIterator[FunctionHost]:
    """A host that comes back when its worker is killed."""
    async with await FunctionHost.start(ROOT, page_deployment.environment, supervised=True) as made:
        yield made


@pytest.fixture
async def page(browser: str) -> AsyncIterator[Page]:
    """A fresh tab; nothing may have gone wrong in it."""
    async with browsing(browser) as made:
        yield made
        assert made.problems == []


@pytest.fixture
async def tab(page: Page, host: FunctionHost) -> Tab:
    """The page, loaded."""
    made = Tab(page, host)
    await made.open()
    return made
