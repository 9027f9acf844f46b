"""The layers of ARCHITECTURE.md, read from the imports: an import goes inwards only, and importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "src/segue").rglob("*.py"), *(ROOT / "streams").glob("*.py")])

LAYERS = [
    {"segue.core", "segue.errors", "segue"},
    {"segue.topics", "segue.metrics", "segue.rejections", "segue.mending", "segue.embedded", "segue.rules"},
    {"segue.settings", "segue.normalise", "segue.log", "segue.store", "segue.deadletters"},
    {"segue.routing", "segue.merge", "segue.quarantine", "segue.orders",
     "segue.resolution", "segue.identity_records", "segue.processor"},
    {"segue.turn", "segue.transports"},
    {"segue.engine"},
    {"segue.client"},
    {"streams.resolve", "streams.context", "streams.signals", "streams"},
    {"segue.faults"},
    {"segue.runtime"},
    {"segue.up", "segue.rebuild", "segue.api", "segue.importer", "segue.agents", "segue.schemas_tool",
     "segue.letterbox"},
    {"segue.demo", "streams.complaints"},
    {"segue.cli"},
    {"segue.__main__"},
]  # fmt: skip
"""From the inside out; a module may import from its own layer and from those before it."""

ONLY_IN = {
    "confluent_kafka": {
        "segue.log.kafka",
        "segue.log.kafka_ends",
        "segue.log.kafka_member",
        "segue.log.kafka_transactions",
        "segue.log.kafka_reader",
        "segue.transports",
    },
    "sqlite3": {"segue.log.sqlite"},
    "redis": {
        "segue.store",
        "segue.embedded",
        "segue.runtime",
        "segue.rebuild",
        "segue.cli.rebuild",
        "segue.api.doors",
        "segue.demo",
    },
    "faust": {"segue.agents", "streams.complaints"},
    "fastapi": {"segue.api"},
    "typer": {"segue.cli"},
}
"""Who may know a library: one place each, where it can be."""


def name_of(file: Path) -> str:
    base = ROOT / "src" if "src" in file.relative_to(ROOT).parts else ROOT
    parts = file.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(file: Path, *, late: bool = True) -> set[str]:
    """The modules a file imports, by full name; `late` counts those inside functions too."""
    tree = ast.parse(file.read_text())
    nodes = ast.walk(tree) if late else iter(tree.body)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def layer_of(module: str) -> int | None:
    """The layer of the longest name that covers the module."""
    covering = [
        (len(name), level)
        for level, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    return max(covering)[1] if covering else None


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_an_import_goes_inwards_only(file: Path) -> None:
    mine = layer_of(name_of(file))
    assert mine is not None, f"{name_of(file)} is in no layer"
    ours = {name for name in imports_of(file) if name.split(".")[0] in ("segue", "streams")}
    if name_of(file) in ("segue.runtime", "segue.cli.processes"):  # they build what they run
        ours = {name for name in ours if not name.startswith("streams.")}
    outward = {name for name in ours if (layer_of(name) or 0) > mine}
    assert outward == set()


@pytest.mark.parametrize("file", sorted((ROOT / "src/segue/core").glob("*.py")), ids=name_of)
def test_the_core_knows_nothing_but_value_types(file: Path) -> None:
    foreign = {
        name
        for name in imports_of(file)
        if name.split(".")[0] not in sys.stdlib_module_names | {"msgspec"} and not name.startswith("segue.core")
    }
    assert foreign == set()
    touching = {"time", "random", "os", "socket", "threading", "asyncio", "logging", "pathlib", "subprocess", "uuid"}
    assert {name.split(".")[0] for name in imports_of(file)} & touching == set()


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_whoever_writes_interactions_asks_the_layout_for_their_topic(file: Path) -> None:
    """A rebuild for another number of partitions gives them another (docs/adr/0008)."""
    named = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Output"
        and any(isinstance(given, ast.Name) and given.id == "INTERACTIONS" for given in node.args)
    ]
    assert named == [], "take `layout.interactions`"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_in_one_place(library: str) -> None:
    users = {name_of(file) for file in FILES if library in {name.split(".")[0] for name in imports_of(file)}}
    allowed = ONLY_IN[library]
    assert {user for user in users if not any(user == a or user.startswith(a + ".") for a in allowed)} == set()


def test_importing_does_nothing_but_import() -> None:
    """Every module is imported in a process that says what it opens, connects to and starts."""
    watcher = """
import sys, importlib
import confluent_kafka.admin, email_validator, fastapi, faust, httpx, phonenumbers, redis.asyncio, uvicorn  # not ours
seen = []
WRITING = set("wax+")
def hook(event, args):
    if "'file', '-b'" in str(args):  # the platform module looks at Python itself, for Faust
        return
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "sqlite3.connect", "os.mkdir", "os.remove"):
        seen.append((event, str(args)[:80]))
    elif event == "open" and isinstance(args[1], str) and set(args[1]) & WRITING:
        seen.append((event, str(args)[:80]))
sys.dont_write_bytecode = True
sys.addaudithook(hook)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(seen)
"""
    modules = [name_of(file) for file in FILES if not name_of(file).endswith("__main__")]
    command = [sys.executable, "-c", watcher, *modules]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
