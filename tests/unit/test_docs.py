"""The documents hold: links and anchors, commands, code, settings, and what the README claims."""

import ast
import asyncio
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from resilience import ResponseContext, ResponseModeFlags, ResponsesApp
from scripts import settings_table

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
QUICKSTART = DOCS / "quickstart.md"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(DOCS.glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("samples", "samples/frameworks", "devhost", "infra")),
]

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NODE = re.compile(r"`([\w/]+\.py::\w+)`")
ON_THE_WEB = ("https://", "http://", "mailto:")

TOOLS = {"cd", "curl", "git", "kill", "make"}
"""What the quickstart may ask a reader to type, besides the project's own Python."""


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


def read(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks in a language, without the indentation of the list they stand in."""
    return [
        re.sub(rf"^{found[1]}", "", found[3], flags=re.MULTILINE)
        for found in FENCE.finditer(text)
        if found[2] == language
    ]


# -- links ------------------------------------------------------------------------------------------------------------


@cache
def anchors_of(document: Path) -> frozenset[str]:
    """The anchors of a document's headlines, as GitHub makes them."""
    made: set[str] = set()
    for headline in re.findall(r"^#{1,6} +(.+)$", FENCE.sub("", read(document)), re.MULTILINE):
        plain = LINK.sub("]", headline).replace("`", "").strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeats = sum(1 for each in made if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", each))
        made.add(f"{anchor}-{repeats}" if repeats and anchor in made else anchor)
    return frozenset(made)


def broken_links(document: Path, text: str) -> list[str]:
    """The links of a text that lead nowhere, if it stood in that document."""
    broken = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))):
        if link.startswith(ON_THE_WEB):
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / place).resolve() if place else document
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    return broken


@every_document
def test_every_link_and_anchor_leads_somewhere(document: Path) -> None:
    assert broken_links(document, read(document)) == []


@pytest.mark.parametrize("link", ["docs/nowhere.md", "docs/settings.md#nothing", "#no-such-headline"])
def test_a_link_that_leads_nowhere_is_noticed(link: str) -> None:
    assert broken_links(README, f"[here]({link})") == [link]


def test_every_document_can_be_found_from_the_index() -> None:
    """Over the links of docs/README.md and of the documents that these lead to."""
    seen: set[Path] = set()
    waiting = [DOCS / "README.md"]
    while waiting:
        document = waiting.pop()
        if document not in seen and document.suffix == ".md":
            seen.add(document)
            places = [link.partition("#")[0] for link in LINK.findall(FENCE.sub("", read(document)))]
            waiting += [(document.parent / place).resolve() for place in places if place and "://" not in place]
    assert set(DOCUMENTS) - seen == {ROOT / "CHANGELOG.md"} - seen


def test_every_picture_is_shown_somewhere() -> None:
    text = "\n".join(read(document) for document in DOCUMENTS)
    assert [each.name for each in sorted((DOCS / "images").iterdir()) if f"images/{each.name})" not in text] == []


def test_the_drawing_is_well_formed_and_has_both_grounds_and_words() -> None:
    drawing = DOCS / "images" / "how-it-works.svg"
    root = ElementTree.fromstring(read(drawing))
    space = "{http://www.w3.org/2000/svg}"
    assert root.findtext(f"{space}title")
    assert root.findtext(f"{space}desc")
    assert "prefers-color-scheme: dark" in (root.findtext(f"{space}style") or "")
    said = " ".join("".join(text.itertext()) for text in root.iter(f"{space}text"))
    for word in ("Accept", "Claim", "Run", "Tail", "Adopt", "Row", "Log", "Ledger", "Queue"):
        assert word in said


# -- commands and code ------------------------------------------------------------------------------------------------


def targets() -> set[str]:
    """What can be made."""
    return set(re.findall(r"^([a-z][a-z-]*):", read(ROOT / "Makefile"), re.MULTILINE))


def named_targets(text: str) -> set[str]:
    """The targets that a document names, in its commands and in code within its sentences."""
    code = [*blocks(text, "sh"), *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]
    return {target for each in code for target in re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", each)}


@every_document
def test_every_make_target_exists(document: Path) -> None:
    assert named_targets(read(document)) - targets() == set()


def test_a_target_that_does_not_exist_is_noticed() -> None:
    assert named_targets("`make haste`, make sure\n\n```sh\nX=1 make waves PORT=1\n```\n") == {"haste", "waves"}


def test_every_target_is_in_the_readme_or_the_contributors_guide() -> None:
    assert targets() - named_targets(read(README) + read(ROOT / "CONTRIBUTING.md")) == set()


@every_document
def test_every_python_block_parses(document: Path) -> None:
    for code in blocks(read(document), "python"):
        ast.parse(code)


def handlers(document: Path) -> Iterator[str]:
    """The Python blocks of a document that register a handler."""
    return (code for code in blocks(read(document), "python") if "@app.response_handler" in code)


WITH_HANDLERS = [
    pytest.param(code, id=f"{document.stem}-{number}")
    for document in (README, DOCS / "write-a-handler.md", DOCS / "make-it-resilient.md")
    for number, code in enumerate(handlers(document))
]


@pytest.mark.parametrize("code", WITH_HANDLERS)
async def test_every_handler_in_the_documents_answers(code: str) -> None:
    scope: dict[str, Any] = {"app": ResponsesApp()}
    exec("from resilience import *\n" + code, scope)
    context = ResponseContext(
        response_id="resp_test",
        mode_flags=ResponseModeFlags(stream=True, store=True, background=True),
        request={"input": "Hello out there"},
    )
    answer = scope["app"].handler(context.request, context, asyncio.Event())
    events = [event async for event in (await answer if asyncio.iscoroutine(answer) else answer)]
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"]


def quickstart_commands() -> list[str]:
    return [line for block in blocks(read(QUICKSTART), "sh") for line in block.splitlines() if line]


def test_the_commands_of_the_quickstart_exist() -> None:
    saved = re.findall(r"`(\.run/\w+\.py)`", read(QUICKSTART))
    for line in quickstart_commands():
        words = re.sub(r"^(\w+=\S+ )+", "", line).split()
        if words[0] == ".venv/bin/python":
            module = words[2] if words[1] == "-m" else None
            assert find_spec(module) if module else words[1] in saved, line
        else:
            assert words[0] in TOOLS, line


def test_every_program_of_the_quickstart_is_saved_and_run() -> None:
    text = read(QUICKSTART)
    saved = re.findall(r"`(\.run/\w+\.py)`[^`]*```python\n", text)
    run = [line.split()[1] for line in quickstart_commands() if line.startswith(".venv/bin/python ")]
    assert saved == run
    assert len(saved) == len(blocks(text, "python"))


def test_the_worker_is_killed_by_the_same_words_everywhere() -> None:
    """They are those of the local host's own command line, which tests/integration/test_make_start.py starts."""
    commands = {found for each in DOCUMENTS for found in re.findall(r"pgrep -f '([^']+)'", read(each))}
    assert commands == {"port 7071 --no-supervisor"}
    assert "--no-supervisor" in read(ROOT / "devhost" / "supervisor.py")


# -- settings ---------------------------------------------------------------------------------------------------------


def test_the_table_of_settings_is_what_the_code_says_now() -> None:
    assert read(settings_table.DOCUMENT) == settings_table.document(), "run: python -m scripts.settings_table"


def test_every_setting_that_the_code_reads_is_in_the_table_and_the_other_way_round() -> None:
    found = settings_table.names_read()
    assert settings_table.missing(found, settings_table.described()) == []
    assert settings_table.stale(found) == []


def test_every_setting_has_a_meaning() -> None:
    fields = [*settings_table.engine_fields(), *settings_table.limit_fields(), *settings_table.option_fields()]
    assert [field.name for field in fields if not field.meaning] == []
    assert [setting.name for setting in settings_table.DESCRIBED if not setting.meaning] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('NEW = "RESPONSES_NEW"', "RESPONSES_NEW"),
        ('import os\nvalue = os.environ.get("SOMETHING_NEW")', "SOMETHING_NEW"),
        ('import os\nvalue = os.getenv("SOMETHING_NEW")', "SOMETHING_NEW"),
        ('def read(environment):\n    return environment["SOMETHING_NEW"]', "SOMETHING_NEW"),
        ('S = "Azure"\ndef read(environment):\n    return environment.get(f"{S}_NEW", "")', "Azure_NEW"),
        ('P = "NEW_THING"\ndef read(self):\n    return P in self._environment', "NEW_THING"),
    ],
)
def test_a_setting_that_is_not_described_is_noticed(source: str, found: str) -> None:
    tree = ast.parse(source)
    names = dict.fromkeys(settings_table.names_in(tree, dict(settings_table.constants_of(tree))), "new.py")
    assert settings_table.missing(names, settings_table.described()) == [f"new.py reads {found}"]


def test_a_setting_that_nothing_reads_any_more_is_noticed() -> None:
    found = {name: place for name, place in settings_table.names_read().items() if name != "RESPONSES_PAGE"}
    assert settings_table.stale(found) == ["RESPONSES_PAGE"]


@every_document
def test_no_document_names_a_setting_that_does_not_exist(document: Path) -> None:
    known = set(settings_table.described())
    parameters = read(ROOT / "infra" / "main.parameters.json") + read(ROOT / "infra" / "main.bicep")
    known |= set(re.findall(r"RESPONSES_[A-Z_]+", parameters))
    named = set(re.findall(r"\bRESPONSES_[A-Z_]*[A-Z]", read(document)))
    assert named - known == set()


# -- claims -----------------------------------------------------------------------------------------------------------


def rows_below(text: str, header: str) -> list[list[str]]:
    """The cells of the table whose first line begins so."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def unproven(text: str) -> list[str]:
    """What the README claims of this server beside others, and no test that exists shows."""
    shown = {claim: NODE.findall(tests) for claim, tests in rows_below(text, "| This server | Shown by |")}
    claims = [row[0] for row in rows_below(text, "| | This server |")]
    faults = [claim for claim in claims if not shown.get(claim)]
    faults += [node for nodes in shown.values() for node in nodes if not is_a_test(node)]
    return faults + [claim for claim in shown if claim not in claims]


def is_a_test(node: str) -> bool:
    file, _, name = node.partition("::")
    path = ROOT / "tests" / file
    return path.is_file() and re.search(rf"^(async )?def {name}\(", read(path), re.MULTILINE) is not None


def test_every_claim_beside_the_alternatives_names_a_test_that_exists() -> None:
    assert unproven(read(README)) == []


def test_a_claim_without_its_test_is_noticed() -> None:
    text = read(README)
    assert unproven(text.replace("::test_attempts_are_bounded`", "::test_gone`")) == [
        "integration/test_engine_crash.py::test_gone"
    ]
    last = next(line for line in text.splitlines() if line.startswith("| Has to be there | Azure"))
    assert unproven(text.replace(last, f"{last}\n| It is fast | yes |")) == ["It is fast"]


def test_every_row_of_the_comparison_has_every_column() -> None:
    header = next(line for line in read(README).splitlines() if line.startswith("| | This server |"))
    columns = len(header.strip("|").split("|"))
    assert [row[0] for row in rows_below(read(README), "| | This server |") if len(row) != columns] == []
