"""What the README says is done: its snippets run, its commands exist, its paths are there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.stack import ApiServer, EmbeddedStack

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").rglob("*.md"))]
ADDRESS = "http://127.0.0.1:8321"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedStack, str]]:
    with EmbeddedStack(tmp_path_factory.mktemp("readme")) as stack, ApiServer(stack.settings).ready() as api:
        yield stack, api.url


def context_of(url: str) -> dict[str, object]:
    answer = httpx.get(f"{url}/v1/customers/email:lin@example.com/context")
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()["context"]
    return found


def test_the_first_event_of_the_readme_becomes_a_readable_context(running: tuple[EmbeddedStack, str]) -> None:
    stack, url = running
    (command,) = [block for block in blocks("sh") if "curl -i" in block]
    done = subprocess.run(command.replace(ADDRESS, url), shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("HTTP/1.1 202")
    stack.drain()
    assert context_of(url)["current"]["touchpoint"] == "checkout"  # type: ignore[index]


def test_the_python_snippet_of_the_readme_sends_an_event(running: tuple[EmbeddedStack, str]) -> None:
    stack, url = running
    (snippet,) = blocks("python")
    subprocess.run([sys.executable, "-c", snippet.replace(ADDRESS, url)], check=True)
    stack.drain()
    assert "case:C-17" in context_of(url)["items"]  # type: ignore[operator]


def test_the_reading_commands_of_the_readme_answer(running: tuple[EmbeddedStack, str]) -> None:
    stack, url = running
    (snippet,) = blocks("python")
    subprocess.run([sys.executable, "-c", snippet.replace(ADDRESS, url)], check=True)
    stack.drain()
    (block,) = [block for block in blocks("sh") if "/stream" in block]
    read, stream = block.replace(ADDRESS, url).strip().splitlines()
    assert '"as_of"' in subprocess.run(read, shell=True, capture_output=True, text=True, check=True).stdout
    with subprocess.Popen(f"exec {stream}", shell=True, stdout=subprocess.PIPE, text=True) as listening:
        assert listening.stdout is not None
        assert any(line.startswith("data:") for line in iter(listening.stdout.readline, ""))
        listening.kill()
    for page in ("/docs", "/metrics", "/openapi.json", "/v1/customers/email:lin@example.com/signals",
                 "/v1/identity/email:lin@example.com"):  # fmt: skip
        assert httpx.get(url + page).status_code == 200, page


def test_every_command_that_the_readme_names_exists() -> None:
    named = set(
        re.findall(r"\bsegue (?!up`|\[)([a-z]+)", " ".join(re.findall(r"`[^`]*`|\.venv/bin/segue \w+", README)))
    )
    assert {"up", "run", "import", "config", "topics"} <= named
    for command in named:
        call = [sys.executable, "-m", "segue", command, "--help"]
        done = subprocess.run(call, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"segue {command}: {done.stderr}"


def test_every_make_target_that_the_readme_names_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)\b", " ".join(re.findall(r"`[^`]*`|```.*?```", README, re.S))))
    assert {"demo", "test", "figures", "bench", "help"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)", text) if not target.startswith("http")]
    missing = [target for target in links if not (page.parent / target).exists()]
    missing += [path for path in re.findall(r"`((?:src|streams|tests|schemas|docs|bench)/[\w./-]+)`", text)
                if not (ROOT / path).exists()]  # fmt: skip
    assert missing == []
