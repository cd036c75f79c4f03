"""The page does what it says: nothing missing, nothing twice, and nothing that a server says is more than text."""

import hashlib
import os
import signal

import pytest

from tests.page.browser import BrowserFailed, Page
from tests.page.conftest import Tab
from tests.support.host import FunctionHost
from tests.support.servers import Deployment

CTRL = 2
MARKUP = '<img src=x onerror="window.ran=1"><script>window.ran=1</script>'


# -- streams ----------------------------------------------------------------------------------------------------------


async def test_a_dropped_connection_costs_and_doubles_no_event(tab: Tab) -> None:
    await tab.send("count to 12")
    await tab.saw(8)
    await tab.page.click("drop")
    await tab.shows("link", "dropped by you after event")
    dropped = len(await tab.numbers())
    assert await tab.page.evaluate("document.getElementById('resume').textContent") == f"Resume after {dropped - 1}"
    await tab.page.click("resume")
    await tab.ends()
    numbers = await tab.numbers()
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > dropped
    await tab.shows("proof", "none missing, none twice, over 2 connections")
    assert await tab.text("output") == "1 2 3 4 5 6 7 8 9 10 11 12"


async def test_a_killed_worker_shows_as_a_reset_in_the_same_stream(page: Page, supervised: FunctionHost) -> None:
    tab = Tab(page, supervised)
    await tab.open()
    await tab.send("count to 20")
    await tab.saw(16)
    os.kill(supervised.pid, signal.SIGKILL)
    await tab.shows("link", "connect")
    await tab.ends()
    numbers = await tab.numbers()
    assert numbers == list(range(len(numbers)))
    await tab.shows("story", "Another entry took over")
    await tab.shows("facts", "Attempts2")
    assert await page.evaluate("document.querySelectorAll('tr.reset').length") == 1
    assert "2 entries into the handler" in await tab.text("strip")
    assert await tab.text("output") == "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"
    await page.click("replay")
    await tab.shows("proof", f"all {len(numbers)} events are the same, byte for byte")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("frames.filter((_, i) => i !== 4)", "1 missing"),
        ("frames.flatMap((f, i) => (i === 4 ? [f, f] : [f]))", "1 twice"),
    ],
    ids=["lost", "doubled"],
)
async def test_a_stream_that_loses_or_doubles_an_event_is_told(tab: Tab, change: str, complaint: str) -> None:
    await tab.page.evaluate(FALSIFIED % change)
    await tab.send("count to 3")
    await tab.ends()
    await tab.shows("proof", complaint)
    assert await tab.page.evaluate("document.getElementById('proof').classList.contains('bad')")


@pytest.mark.parametrize(
    "change",
    ["frames.map((f) => f.replace('2 ', '7 '))", "[...frames, frames[0]]", "frames.slice(0, -1)"],
    ids=["changed", "longer", "shorter"],
)
async def test_a_replay_that_differs_is_told(tab: Tab, change: str) -> None:
    await tab.send("count to 3")
    await tab.ends()
    await tab.page.evaluate(FALSIFIED % change)
    await tab.page.click("replay")
    await tab.shows("proof", "is not the one that was seen")
    assert await tab.page.evaluate("document.getElementById('proof').classList.contains('bad')")


async def test_a_cancelled_response_ends_and_can_be_deleted(tab: Tab) -> None:
    await tab.send("count to 40")
    await tab.saw(6)
    await tab.page.click("cancel")
    await tab.ends("cancelled")
    await tab.shows("story", "Cancelled")
    await tab.page.click("delete")
    await tab.shows("delete", "Delete for good?")
    await tab.page.click("delete")
    await tab.shows("status", "deleted")
    assert await tab.page.evaluate("document.getElementById('delete').disabled")


async def test_a_turn_sent_while_one_runs_steers_it(tab: Tab) -> None:
    await tab.send("count to 60")
    await tab.saw(6)
    await tab.page.write("prompt", "count to 3")
    await tab.page.click("follow")
    await tab.page.until("document.querySelectorAll('#list li').length === 2")
    await tab.ends()
    await tab.shows("facts", "turn 2, had to wait for its turn")
    assert await tab.text("output") == "1 2 3"
    assert [pill.strip() for pill in await pills(tab)] == ["completed", "incomplete"]


async def pills(tab: Tab) -> list[str]:
    found = await tab.page.evaluate("[...document.querySelectorAll('#list .pill')].map(p => p.textContent)")
    return [str(text) for text in found]


# -- the other modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("background", "stream", "store"),
    [(False, False, True), (False, True, True), (True, False, True), (False, False, False), (False, True, False)],
    ids=["c1", "c2", "c3", "c5", "c6"],
)
async def test_every_other_mode_shows_its_output(tab: Tab, background: bool, stream: bool, store: bool) -> None:
    await tab.send("hello there", background=background, stream=stream, store=store)
    await tab.ends()
    assert await tab.text("output") == "You said: hello there"
    assert bool(await tab.numbers()) is stream
    assert await tab.page.evaluate("document.getElementById('resume').disabled")


async def test_dropping_a_foreground_stream_cancels_its_run(tab: Tab) -> None:
    await tab.send("count to 40", background=False)
    await tab.saw(6)
    assert await tab.text("drop") == "Drop (cancels the run)"
    await tab.page.click("drop")
    await tab.shows("status", "cancelled")


async def test_a_refusal_is_shown_with_its_parameter(tab: Tab) -> None:
    await tab.send("hello", store=False)
    await tab.shows("ask-error", "param background")
    assert await tab.page.evaluate("document.querySelectorAll('#list li').length") == 0


async def test_a_response_is_opened_by_its_id_and_by_its_address(tab: Tab) -> None:
    await tab.send("count to 3")
    await tab.ends()
    response_id = await tab.text("shown-id")
    before = await tab.numbers()
    await tab.page.evaluate("sessionStorage.clear()")
    await tab.page.goto("about:blank")
    await tab.open(f"#{response_id}")
    await tab.saw(len(before))
    await tab.ends()
    assert await tab.numbers() == before
    await tab.shows("axis-name", "a log holds no times")
    await tab.page.evaluate("sessionStorage.clear(); history.replaceState(null, '', '/')")
    await tab.open()
    await tab.page.write("open-id", response_id)
    await tab.page.press("Enter", 13, text="\r")
    await tab.ends()
    assert await tab.text("output") == "1 2 3"


async def test_an_id_that_is_none_is_refused_in_words(tab: Tab) -> None:
    await tab.page.write("open-id", "resp_nonsense")
    await tab.page.press("Enter", 13, text="\r")
    await tab.shows("ask-error", "HTTP 400")


async def test_the_list_outlives_a_reload(tab: Tab) -> None:
    await tab.send("hello")
    await tab.ends()
    response_id = await tab.text("shown-id")
    await tab.page.goto("about:blank")
    await tab.open()
    await tab.shows("list", response_id)
    await tab.ends()


# -- what must not happen ---------------------------------------------------------------------------------------------


async def test_markup_in_an_answer_stays_text(tab: Tab) -> None:
    await tab.send(MARKUP)
    await tab.ends()
    assert await tab.text("output") == f"You said: {MARKUP}"
    await tab.page.click("replay")
    await tab.shows("proof", "byte for byte")
    await tab.page.evaluate("document.querySelector('#events tr:last-child .number').click()")
    await tab.page.until("document.querySelector('tr.json pre').textContent.includes('onerror')")
    assert MARKUP[:20] in await tab.text("list")
    made = await tab.page.evaluate("document.querySelectorAll('#shown img, #list img, #shown script').length")
    assert (made, await tab.page.evaluate("window.ran")) == (0, None)


async def test_markup_in_a_refusal_stays_text(tab: Tab) -> None:
    await tab.page.evaluate("document.querySelector('details').open = true")
    await tab.page.write("previous", MARKUP)
    await tab.page.click("send")
    await tab.shows("ask-error", "onerror")
    assert await tab.page.evaluate("document.querySelectorAll('#ask-error img').length") == 0
    assert await tab.page.evaluate("window.ran") is None


@pytest.mark.parametrize(
    "attempt",
    [
        "document.body.innerHTML = '<b>x</b>'",
        "new Function('window.ran = 1')()",
        "eval('window.ran = 1')",
    ],
    ids=["markup", "function", "eval"],
)
async def test_the_policy_forbids_to_make_code_or_markup_of_text(page: Page, host: FunctionHost, attempt: str) -> None:
    """What the page never does would not work either."""
    await Tab(page, host).open()
    with pytest.raises(BrowserFailed):
        await page.evaluate(attempt)
    assert await page.evaluate("window.ran") is None
    page.problems.clear()  # the browser says that it refused


async def test_the_policy_forbids_inline_handlers_and_foreign_addresses(page: Page, host: FunctionHost) -> None:
    await Tab(page, host).open()
    await page.evaluate(
        "(() => { const made = document.createElement('div'); document.body.append(made);"
        " try { made.setAttribute('onclick', 'window.ran = 1'); } catch { /* refused even earlier */ }"
        " made.click(); })()"
    )
    assert await page.evaluate("window.ran") is None
    reached = await page.evaluate("fetch('http://localhost:1/').then(() => 'yes', (e) => e.message)")
    assert "Failed to fetch" in reached
    assert any("connect-src" in problem for problem in page.problems)
    page.problems.clear()


async def test_the_key_is_sent_as_a_bearer_token_and_kept_in_this_tab_only(tab: Tab) -> None:
    await tab.page.write("key", "secret-of-mine")
    await tab.page.evaluate(
        "(() => { const f = window.fetch; window.sent = [];"
        " window.fetch = (a, o) => { window.sent.push(o.headers.Authorization); return f(a, o); }; })()"
    )
    await tab.send("hello")
    await tab.ends()
    sent = await tab.page.evaluate("window.sent")
    assert set(sent) == {"Bearer secret-of-mine"}
    assert await tab.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert await tab.page.evaluate("Object.values(sessionStorage).includes('secret-of-mine')")
    assert "secret-of-mine" not in await tab.page.evaluate("location.href + document.body.innerText")
    await tab.page.write("key", "")
    assert not await tab.page.evaluate("Object.values(sessionStorage).includes('secret-of-mine')")


async def test_a_server_with_keys_is_used_with_the_typed_one(page: Page, page_deployment: Deployment) -> None:
    key = "a-key-for-this-test"
    entry = f"somebody:{hashlib.sha256(key.encode()).hexdigest()}"
    host = await page_deployment.start(RESPONSES_API_KEYS=entry)
    tab = Tab(page, host)
    await page.goto(f"{host.base_url}/")
    await tab.shows("server", "an API key is needed")
    await tab.send("hello")
    await tab.shows("ask-error", "HTTP 401")
    await page.write("key", key)
    await tab.shows("server", "server ready")
    await tab.send("hello")
    await tab.ends()
    assert await tab.text("output") == "You said: hello"
    await tab.shows("facts", "1 segment")


# -- for everybody ----------------------------------------------------------------------------------------------------


async def test_the_keyboard_alone_is_enough(tab: Tab) -> None:
    await tab.page.evaluate("document.getElementById('prompt').focus()")
    await tab.page.press("Enter", 13, modifiers=CTRL)
    await tab.saw(5)
    await tab.page.evaluate("document.activeElement.blur()")
    reached: set[str] = set()
    for _ in range(60):
        await tab.page.press("Tab", 9)
        name, outline = await tab.page.evaluate(FOCUSED)
        reached.add(name)
        assert name == "BODY" or outline != "none", f"no focus ring: {name}"
    assert {"prompt", "background", "send", "open-id", "drop", "cancel", "events-box", "number"} <= reached


async def test_every_control_has_a_name(tab: Tab) -> None:
    await tab.send("count to 3")
    await tab.ends()
    tree = await tab.page.call("Accessibility.getFullAXTree")
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if node.get("role", {}).get("value") in ("button", "textbox", "checkbox", "image", "region", "table", "link")
        and not node["ignored"]
    ]
    assert len(controls) > 20
    assert [control for control in controls if not control[1] and control[0] not in ("table",)] == []
    # A placeholder would pass for a name above, and is gone when something is typed.
    unlabelled = "[...document.querySelectorAll('input, textarea')].filter(e => !e.labels.length).map(e => e.id)"
    assert await tab.page.evaluate(unlabelled) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_text_stands_out_from_its_ground(tab: Tab, dark: bool) -> None:
    await tab.page.look(dark=dark, height=2400)
    await tab.send("count to 3")
    await tab.ends()
    await tab.page.click("replay")
    await tab.shows("proof", "byte for byte")
    worst = await tab.page.evaluate(CONTRASTS)
    assert worst
    assert [each for each in worst if each[0] < 4.5] == []


@pytest.mark.parametrize("width", [320, 390, 768])
async def test_a_narrow_screen_needs_no_sideways_scrolling(tab: Tab, width: int) -> None:
    await tab.page.look(width=width, height=800)
    await tab.send("count to 3 " + "x" * 200)
    await tab.ends()
    assert await tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert await tab.page.evaluate("document.getElementById('strip').firstChild.clientWidth") <= width


FALSIFIED = """
(() => {
  const real = window.fetch;
  window.fetch = async (address, options) => {
    const answer = await real(address, options);
    if (!answer.headers.get("content-type").startsWith("text/event-stream")) return answer;
    const frames = (await answer.text()).split("\\n\\n").slice(0, -1);
    return new Response((%s).map((frame) => frame + "\\n\\n").join(""));
  };
})()
"""

FOCUSED = """
(() => {
  const element = document.activeElement;
  return [element.id || element.className || element.tagName, getComputedStyle(element).outlineStyle];
})()
"""

CONTRASTS = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      const colour = rgba(getComputedStyle(each).backgroundColor);
      layers.unshift(colour);
      if (colour[3] === 255) break;
    }
    const over = (below, [r, g, b, a]) => [r, g, b].map((v, i) => (v * a) / 255 + below[i] * (1 - a / 255));
    return layers.reduce(over, [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.getClientRects().length || element.closest("svg, :disabled")) continue;
    const [one, other] = [light(rgba(getComputedStyle(element).color)), light(ground(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    found.push([Math.round(contrast * 100) / 100, element.tagName, element.className, text.slice(0, 30)]);
  }
  return found;
})()
"""
