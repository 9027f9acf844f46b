"""The demo: its story, what the story implies, and the command."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from segue.client import Client
from segue.core.channels import CHANNELS
from segue.core.event import Event, Rejected, decode
from segue.demo import incidents
from segue.demo.counts import Counts, agrees, compared
from segue.demo.incidents import excerpt
from segue.demo.player import Player
from segue.demo.reading import ApiReader
from segue.demo.screen import Screen
from segue.demo.stage import Options, perform
from segue.demo.story import Story
from segue.demo.wrap import wrapped
from segue.log.sqlite import SqliteLog
from segue.routing import Routed, route
from tests.support.stack import ApiServer, EmbeddedStack

START = datetime(2026, 3, 1, 9, tzinfo=UTC)
SEEDS = (1, 7, 2026)
COMMAND = [sys.executable, "-m", "segue", "demo"]


def quiet_screen() -> Screen:
    return Screen(Console(file=io.StringIO()), quiet=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_and_start_give_the_same_story(seed: int) -> None:
    once, again = Story(seed, START), Story(seed, START)
    assert once.parts() == again.parts()


def test_another_seed_gives_other_numbers_and_implies_the_same() -> None:
    stories = [Story(seed, START) for seed in SEEDS]
    assert len({orjson.dumps([scene.event["data"] for scene in story.scenes]) for story in stories}) == len(SEEDS)
    assert all(story.expected() == stories[0].expected() for story in stories)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_event_of_the_story_is_valid_and_names_somebody(seed: int) -> None:
    found = [route(orjson.dumps(scene.event)) for scene in Story(seed, START).scenes]
    assert [each for each in found if not isinstance(each, Routed)] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_in_the_story_lies_in_the_future_and_it_is_sent_in_order(seed: int) -> None:
    story = Story(seed, START)
    times = [datetime.fromisoformat(scene.event["time"]) for scene in story.scenes]
    assert START <= min(times) <= max(times) <= START + story.length
    offsets = [part.offset for part in story.parts()]
    assert offsets == sorted(offsets)
    assert offsets[-1] <= story.length


def test_the_ids_of_two_performances_differ() -> None:
    one, other = (Story(7, START + timedelta(seconds=after)) for after in (0, 1))
    assert {s.event["id"] for s in one.scenes}.isdisjoint(s.event["id"] for s in other.scenes)


def test_the_story_visits_every_channel_and_speaks_english_and_chinese() -> None:
    story = Story(7, START)
    assert set(story.expected().events) == set(CHANNELS) - {"other"}
    said = [scene.say for scene in story.scenes if scene.say]
    assert sum(text.isascii() for text in said) > 20
    assert sum(re.search("[\u4e00-\u9fff]", text) is not None for text in said) > 10


def test_bad_input_is_refused_for_the_reason_that_the_story_gives() -> None:
    for bad in Story(7, START).bad:
        found = route(bad.body)
        if bad.channel is None:
            assert isinstance(found, Rejected), bad.what
            assert found.reason == bad.reason
        elif bad.reason in ("null_key", "wrong_topic"):  # these are wrong by where they lie
            assert isinstance(decode(bad.body), Event)
        else:
            assert isinstance(found, Rejected), bad.what


def test_the_story_implies_what_a_stack_makes_of_it(tmp_path: Path) -> None:
    story = Story(7, datetime.now(UTC) - timedelta(hours=3))
    with EmbeddedStack(tmp_path) as stack, ApiServer(stack.settings).ready() as api, ApiReader(api.url) as reader:
        with closing(SqliteLog(tmp_path / "log.sqlite")) as log, Client(url=api.url) as client:
            player = Player(client, log, reader, quiet_screen(), threading.Event(), lambda: None)
            player.story(story, None)
        stack.drain()
        counted = reader.counts()
        counted.refused += player.refused
        person = reader.customer(story.interesting.identifiers[0])
    assert [row for row in compared(story.expected(), counted) if not agrees(row)] == []
    assert person is not None
    assert person["context"]["items"][next(iter(person["context"]["items"]))]["status"] == "resolved"
    assert [signal["rule"] for signal in person["signals"]].count("repeated-contact") == 1


def test_the_excerpt_of_the_incident_log_is_always_the_same_and_holds_what_the_demo_wants_to_show() -> None:
    found = excerpt()
    assert found == excerpt()
    assert all(isinstance(route(orjson.dumps(event)), Routed) for event in found.events())
    implied = found.expected()
    assert set(implied.events) == {"voice", "web", "email", "ivr"}
    assert implied.cases >= incidents.CASES
    assert min(implied.handoffs["group"], *implied.signals.values()) >= 20


def test_a_count_that_the_input_does_not_imply_is_told_apart_from_one_that_is_wrong() -> None:
    implied = Counts(events=Counter(web=2), signals=Counter(a=1), sessions=None, partly=True)
    counted = Counts(events=Counter(web=3), signals=Counter(a=1, b=5), sessions=4)
    wrong = [row for row in compared(implied, counted) if not agrees(row)]
    assert wrong == [("events by channel", "web", 2, 3), ("events by channel", "all", 2, 3)]
    assert ("signals by rule", "b", None, 5) in compared(implied, counted)


@pytest.mark.parametrize("width", [20, 39, 45])
def test_chinese_breaks_between_characters_and_no_line_is_wider_than_it_may_be(width: int) -> None:
    text = "online: 您和机器人的对话我都看到了，不用再说一遍。 Two lines, same month. 支付页面一直转圈，已经试了三次。"
    lines = wrapped(Text(text), width).plain.split("\n")
    assert max(map(cell_len, lines)) <= width
    assert not any(line.startswith(("，", "。")) for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_demo_once_exits_zero_when_every_count_is_what_the_input_implies() -> None:
    done = subprocess.run([*COMMAND, "--once", "--port", "0"], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "counts are what the input implies." in done.stdout
    assert "First context readable" in done.stdout
    assert "Traceback" not in done.stderr


def test_demo_once_exits_one_and_says_which_count_is_not_what_the_input_implies() -> None:
    implied = Story(7, START).expected()
    implied.signals["repeated-contact"] += 1
    out = io.StringIO()
    code = perform(Options(once=True, port=0), Console(file=out, width=100), threading.Event(), implied)
    assert code == 1
    assert re.search(r"1 of \d+ counts are not what the input implies", out.getvalue())
    assert "story, signals by rule, repeated-contact: implied 3, counted 2" in out.getvalue()


def test_ctrl_c_stops_the_demo_in_order_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    seen = ""
    while "First context readable" not in seen:
        line = process.stdout.readline()
        assert line, process.communicate()
        seen += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert err == ""
    assert list(tmp_path.iterdir()) == []
