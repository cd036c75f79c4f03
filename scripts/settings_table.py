"""docs/settings.md, out of the code: every name that the server reads from its environment, and every option of an app.

    python -m scripts.settings_table

Fields of settings classes bring their meaning, default and unit along. What the code reads under a name of its own
stands in `DESCRIBED` below. `missing` compares both with what the modules read, by looking through their syntax
trees, so that a setting without a line here is noticed by a test. Nothing of the server is imported.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "settings.md"

PRODUCT = ("function_app.py", "agent.py", "api", "resilience", "storage", "protocol", "samples")
"""Where settings are read from. The local host and the tools have switches, see their `--help`."""

NAME = re.compile(r"(RESPONSES_|OTEL_|APPLICATIONINSIGHTS_|OPENAI_|AZURE_|WEBSITE_|CONTAINER_APP_|AzureWebJobs)\w+")
ANY = "*"
"""Stands for the part of a name that is only known when the code runs."""


@dataclass(frozen=True)
class Setting:
    """One line of a table. `elsewhere` is set for what is read by others than this project's own code."""

    name: str
    meaning: str
    default: str = ""
    elsewhere: bool = False


@dataclass(frozen=True)
class Field:
    """A field of a settings class: its kind and default as they are written, and what is said about it."""

    name: str
    kind: str
    default: str
    meaning: str


HEAD = """# Settings

Written by `python -m scripts.settings_table`; change the code or that script, not this file.
`tests/unit/test_docs.py` holds it to the code.

App settings on Azure, the environment or `local.settings.json` on your machine
([local.settings.json.example](../local.settings.json.example) serves as long as there is none; the environment wins).
They are read once, when a process starts. A value that cannot be used is an error that names the setting, and never
a default. Times are in seconds and sizes in bytes where nothing else is said. What the deployment in `infra/` sets is
in [deploy.md](deploy.md#what-can-be-set).
"""

APP = (
    Setting("RESPONSES_AGENT", "The app to serve, as `module:name`", "`agent:app`"),
    Setting(
        "RESPONSES_PAGE",
        "`true` or `false`: serve [the page](page.md) at `/`",
        "only under a local host",
    ),
    Setting(
        "RESPONSES_LOG_FORMAT",
        "`json` for log lines that machines read, `text` for the host's own format",
        "`text`",
    ),
    Setting(
        "AzureWebJobsDisableHomepage",
        "`true` hides the page that the Functions host itself shows at `/`",
        "`true` in the example",
        elsewhere=True,
    ),
)
STORAGE = (
    Setting(
        "AzureWebJobsStorage",
        "The storage account: a connection string, or `UseDevelopmentStorage=true` for the emulator",
        "the emulator, locally",
    ),
    Setting(
        "AzureWebJobsStorage__accountName",
        "The account, reached with an identity; without `AzureWebJobsStorage`",
    ),
    Setting("AzureWebJobsStorage__blobServiceUri", "In place of the account's name, with the next two"),
    Setting("AzureWebJobsStorage__queueServiceUri", "Likewise"),
    Setting("AzureWebJobsStorage__tableServiceUri", "Likewise"),
    Setting(
        "AzureWebJobsStorage__credential",
        "`managedidentity`",
        "whatever azure-identity finds",
    ),
    Setting("AzureWebJobsStorage__clientId", "Which identity, if there are several"),
    Setting(
        "RESPONSES_STORAGE_PREFIX",
        "In front of the name of every container, table and queue, so that several servers can share an account: "
        "up to 31 lower-case letters and digits, a letter first",
        "none",
    ),
)
ACCESS = (
    Setting("RESPONSES_AUTH", "`keys`, or `entra` for the platform's authentication", "`keys` where there are some"),
    Setting(
        "RESPONSES_API_KEYS",
        "Who may use the server: entries `NAME:SHA256`, made by `python -m scripts.new_key NAME`, separated by commas "
        "or white space. Without it only a local host answers",
        "none",
    ),
    Setting(
        "RESPONSES_TRUSTED_USER_HEADER",
        "The header in which a gateway with a key names its users",
        "none",
    ),
    Setting(
        "RESPONSES_CORS_ORIGINS",
        "Origins of web pages that may read the answers, separated by commas or white space, or `*`",
        "none",
    ),
)
TELEMETRY = (
    Setting("APPLICATIONINSIGHTS_CONNECTION_STRING", "Traces and metrics to Application Insights", "none"),
    Setting(
        "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
        "`Authorization=AAD`, with `ClientId=…` for a user-assigned identity: an identity in place of the key",
        "none",
    ),
    Setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "Traces and metrics to a collector, by OTLP over HTTP; its base address",
        "none",
    ),
    Setting("OTEL_SDK_DISABLED", "`true` turns all of it off", "`false`"),
    Setting("OTEL_TRACES_SAMPLER", "As everywhere in OpenTelemetry", "everything is recorded"),
    Setting(
        "OTEL_SERVICE_NAME",
        "As everywhere in OpenTelemetry, and so are all further `OTEL_…` settings",
        "the function app's name, or `resilient-responses`",
        elsewhere=True,
    ),
    Setting("OTEL_METRIC_EXPORT_INTERVAL", "Milliseconds between two exports of metrics", "60000", elsewhere=True),
)
EXAMPLE = (
    Setting(
        "OPENAI_API_KEY",
        "With it a model answers in `agent.py` and some samples; without it `agent.py` answers by itself",
        "none",
    ),
    Setting("OPENAI_MODEL", "Which model, whatever the request says", "the request's, or `gpt-5-mini`"),
    Setting("OPENAI_BASE_URL", "Another server than OpenAI's", "OpenAI's", elsewhere=True),
    Setting(
        "AZURE_OPENAI_ENDPOINT",
        "A model of Azure OpenAI in `agent.py`, with the next two",
        "none",
    ),
    Setting("AZURE_OPENAI_API_KEY", "Its key", "none"),
    Setting("AZURE_OPENAI_DEPLOYMENT", "Its deployment's name", "none"),
    Setting(
        "LANGGRAPH_CHECKPOINTS",
        "The file in which `samples/frameworks/langgraph_agent.py` keeps its checkpoints",
        "one among the machine's temporary files",
    ),
)
PLATFORM = (
    Setting("AZURE_FUNCTIONS_ENVIRONMENT", "`Development` is one of the conditions for a local host"),
    Setting("WEBSITE_HOSTNAME", "A loopback name is another"),
    Setting("WEBSITE_SITE_NAME", "A sign of the platform: no local host. Also the service's name in telemetry"),
    Setting("WEBSITE_INSTANCE_ID", "A sign of the platform. Also the instance's id in telemetry"),
    Setting("WEBSITE_POD_NAME", "A sign of the platform"),
    Setting("CONTAINER_APP_NAME", "A sign of the platform"),
    Setting("WEBSITE_AUTH_ENABLED", "`true` where the platform authenticates; `RESPONSES_AUTH=entra` needs it"),
    Setting(
        "AzureWebJobs.run_response.Disabled",
        "`true` where another instance serves the queue: then there is no eager start. Underscores in place of the "
        "dots mean the same",
    ),
)
TESTS = (Setting("CRASH_AT", "`POINT:N` ends the process, as SIGKILL does, when it passes that point", "none"),)

DESCRIBED = (*APP, *STORAGE, *ACCESS, *TELEMETRY, *EXAMPLE, *PLATFORM, *TESTS)


# -- what the code says -----------------------------------------------------------------------------------------------


def fields_of(module: Path, class_name: str) -> list[Field]:
    """The fields of a class that have a default, in order.

    What is said about a field stands in the string behind it (one string may serve several fields), or under
    `Attributes:` in the class's docstring.
    """
    tree = ast.parse(module.read_text(encoding="utf-8"))
    [found] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
    said = attributes_in(ast.get_docstring(found) or "")
    made: list[Field] = []
    nameless: list[str] = []
    for node in found.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=ast.expr() as default):
                made.append(Field(name, ast.unparse(kind), ast.unparse(default), said.get(name, "")))
                nameless.append(name)
            case ast.Expr(value=ast.Constant(value=str(text))) if nameless:
                made = [
                    Field(each.name, each.kind, each.default, sentence(text)) if each.name in nameless else each
                    for each in made
                ]
                nameless = []
    return made


def attributes_in(docstring: str) -> dict[str, str]:
    """`name: text` of each entry under `Attributes:`; entries may go on in the next lines."""
    entries: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Attributes:")[2].splitlines():
        begins = re.match(r"\s*(\w+): (.*)", line)
        if begins:
            name = begins[1]
            entries[name] = begins[2]
        elif line.strip() and name:
            entries[name] += f" {line.strip()}"
        elif not line.strip() and entries:
            break
    return {name: sentence(text) for name, text in entries.items()}


def sentence(text: str) -> str:
    """One line of Markdown, without the full stop at its end."""
    return " ".join(text.split()).replace("``", "`").removesuffix(".")


def names_read(sources: tuple[str, ...] = PRODUCT) -> dict[str, str]:
    """Every name that looks like a setting's or is read from the environment, and a module that has it.

    A name that is put together when the code runs has `*` in the place of what is not known.
    """
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules(sources)}
    known = {dotted(path): dict(constants_of(tree)) for path, tree in trees.items()}
    found: dict[str, str] = {}
    for path, tree in trees.items():
        for name in names_in(tree, {**known[dotted(path)], **imported(tree, known)}):
            found.setdefault(name, str(path.relative_to(ROOT)))
    return found


def dotted(path: Path) -> str:
    """What a module is imported as."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(tree: ast.Module, known: dict[str, dict[str, str]]) -> dict[str, str]:
    """The constants that a module has from others: `NAME`, or `module.NAME` where it imports the module."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                own = name.asname or name.name
                if name.name in known.get(node.module, {}):
                    found[own] = known[node.module][name.name]
                for constant, text in known.get(f"{node.module}.{name.name}", {}).items():
                    found[f"{own}.{constant}"] = text
    return found


def modules(sources: tuple[str, ...]) -> list[Path]:
    """The Python files at these places."""
    places = [ROOT / source for source in sources]
    return [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.py")))]


def constants_of(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names at the top of a module that stand for one text."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                yield name, text


def names_in(tree: ast.Module, constants: dict[str, str]) -> Iterator[str]:
    """The names of settings in one module."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if NAME.fullmatch(text):
                yield text
            case ast.JoinedStr():
                text = written(node, constants)
                if NAME.fullmatch(text.replace(ANY, "x")):
                    yield text
            case (
                ast.Call(func=ast.Attribute(value=where, attr="get" | "pop" | "getenv"), args=[key, *_])
                | ast.Subscript(value=where, slice=key)
                | ast.Compare(left=key, ops=[ast.In()], comparators=[where])
            ) if is_environment(where):
                text = written(key, constants)
                if text != ANY:
                    yield text


def is_environment(node: ast.expr) -> bool:
    """Whether an expression is named like the environment, or is the module that has it."""
    return re.search(r"environ|\bos$", ast.unparse(node)) is not None


def written(node: ast.expr, constants: dict[str, str]) -> str:
    """The text that an expression stands for, as far as it is known."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name() | ast.Attribute():
            return constants.get(ast.unparse(node), ANY)
        case ast.FormattedValue(value=value):
            return written(value, constants)
        case ast.JoinedStr(values=values):
            return "".join(written(value, constants) for value in values)
    return ANY


def described() -> list[str]:
    """Every name that the tables have."""
    own = [f"RESPONSES_{each.name.upper()}" for each in (*engine_fields(), *limit_fields())]
    return [*own, *(setting.name for setting in DESCRIBED)]


def missing(read: dict[str, str], tables: list[str]) -> list[str]:
    """What the code reads and the tables do not have."""
    return [
        f"{module} reads {name}"
        for name, module in sorted(read.items())
        if not any(fits(name, each) for each in tables)
    ]


def stale(read: dict[str, str]) -> list[str]:
    """What `DESCRIBED` has and nothing reads."""
    certain = [name for name in read if not name.endswith(ANY)]
    mine = [setting.name for setting in DESCRIBED if not setting.elsewhere]
    return [each for each in mine if not any(fits(name, each) for name in certain)]


def fits(read: str, name: str) -> bool:
    """Whether a name that is read, perhaps with unknown parts, may be this one."""
    return re.fullmatch(re.escape(read).replace(re.escape(ANY), r"[\w.]+"), name) is not None


def engine_fields() -> list[Field]:
    """The constants of the engine."""
    return fields_of(ROOT / "resilience" / "options.py", "EngineSettings")


def limit_fields() -> list[Field]:
    """The limits of the HTTP side."""
    found = fields_of(ROOT / "api" / "settings.py", "ApiSettings")
    return [each for each in found if each.kind == "int"]


def option_fields() -> list[Field]:
    """What the author of an app decides."""
    return fields_of(ROOT / "resilience" / "options.py", "ResponsesServerOptions")


# -- what is written --------------------------------------------------------------------------------------------------


def document() -> str:
    """The whole file."""
    parts = [
        HEAD,
        section("The app", "", of_settings(APP)),
        section("Storage", "", of_settings(STORAGE)),
        section("Access", "[security.md](security.md) says what follows from them.", of_settings(ACCESS)),
        section("Limits", "[security.md](security.md#limits) says how they are counted.", of_fields(limit_fields())),
        section("Logs and telemetry", "[operations.md](operations.md) says what is sent.", of_settings(TELEMETRY)),
        section(
            "The engine",
            "The defaults fit together: a change of one time may need that of another. "
            "[How it works](how-it-works.md) has the reasons.",
            of_fields(engine_fields()),
        ),
        section("The example app and the samples", "", of_settings(EXAMPLE)),
        section(
            "Set by the platform",
            "Read, but not for you to set.",
            of_settings(PLATFORM, with_default=False),
        ),
        section("For tests", "Never in production.", of_settings(TESTS)),
        section(
            "Options of an app",
            "The author's choices, in the code: `ResponsesApp(ResponsesServerOptions(resilient_background=True))`. "
            "No request and no setting overrides them.",
            of_options(option_fields()),
        ),
    ]
    return "\n".join(parts)


def section(title: str, text: str, table: list[str]) -> str:
    """A headline, a sentence, a table."""
    said = [text, ""] if text else []
    return "\n".join([f"## {title}", "", *said, *table, ""])


def of_settings(settings: tuple[Setting, ...], *, with_default: bool = True) -> list[str]:
    """The table of settings that have a name of their own."""
    if not with_default:
        return ["| Setting | Meaning |", "|---|---|", *(f"| `{each.name}` | {each.meaning} |" for each in settings)]
    rows = [f"| `{each.name}` | {each.meaning} | {each.default} |" for each in settings]
    return ["| Setting | Meaning | Default |", "|---|---|---|", *rows]


def of_fields(found: list[Field]) -> list[str]:
    """The table of a class whose fields are settings."""
    rows = [f"| `RESPONSES_{each.name.upper()}` | {each.meaning} | {default_of(each)} |" for each in found]
    return ["| Setting | Meaning | Default |", "|---|---|---|", *rows]


def of_options(found: list[Field]) -> list[str]:
    """The table of a class whose fields are given in code."""
    rows = [f"| `{each.name}` | {each.meaning} | `{each.default}` |" for each in found]
    return ["| Option | Meaning | Default |", "|---|---|---|", *rows]


def default_of(field: Field) -> str:
    """A default as one writes it in a setting."""
    value = worth(ast.parse(field.default, mode="eval").body)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value} ({value >> 20} MiB)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def worth(node: ast.expr) -> int | float:
    """The number that a default stands for.

    Raises:
        ValueError: It is none.
    """
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.BinOp(left=left, op=ast.LShift(), right=right):
            return int(worth(left)) << int(worth(right))
    raise ValueError(ast.unparse(node))


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
    sys.stdout.write(f"Wrote {DOCUMENT.relative_to(ROOT)}\n")
