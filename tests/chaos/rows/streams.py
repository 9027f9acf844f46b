"""The row about those who watch: clients of `/stream` that read, that stop reading, that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from segue.api.app import STALLED_S
from tests.chaos.harness import Run, row
from tests.support.processes import environment
from tests.support.stack import eventually

_ID = re.compile(rb"(?:^|\n)id: ?(\d+)\n")
SMALL = 4096
"""Bytes that the system keeps for a client that does not read: soon full."""


class Client:
    """One client's view of one customer: the revisions it was told, over all its connections."""

    def __init__(self, port: int, customer: str) -> None:
        self.customer, self.told, self.fell = customer, 0, 0
        self._port = port

    async def watch(self) -> None:
        """Connect, with the revision known, and read until cancelled or left by the server."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(self._request())
            rest = b""
            while piece := await reader.read(65536):
                rest += piece
                for found in _ID.finditer(rest):
                    revision = int(found[1])
                    self.fell += revision < self.told
                    self.told = revision
                rest = rest[rest.rfind(b"\n\n") + 1 :]
        finally:
            writer.close()

    async def come_and_go(self) -> None:
        """Watch for a second and a half, again and again."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.watch(), 1.5)

    async def stall(self) -> None:
        """Connect and never read."""
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", self._port))
            await loop.sock_sendall(sock, self._request())
            await asyncio.Event().wait()

    def _request(self) -> bytes:
        known = f"Last-Event-ID: {self.told}\r\n" if self.told else ""
        path = f"/v1/customers/user_id:{self.customer}/stream"
        return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{known}\r\n".encode()


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


@row("F24", "slow and fleeting stream clients")
def stream_clients(run: Run) -> None:
    """A tenth never reads, a tenth comes and goes; the others must miss nothing, and the API must not grow."""
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        run.skip("only Linux drops a connection that takes nothing")
    run.start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = run.settings.model_copy(update={"api_port": port})
    api = subprocess.Popen([sys.executable, "-m", "segue", "api"], env=environment(settings))
    run.later(lambda: (api.terminate(), api.wait(20)))
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/readyz").status_code == 200
        return False

    eventually(ready, 60, "the API")
    customers = sorted(run.ledger.snapshot())
    clients = [Client(port, run.rng.choice(customers)) for _ in range(100 if run.quick else 500)]
    tenth = len(clients) // 10
    stalled, fleeting, steady = clients[:tenth], clients[tenth : 2 * tenth], clients[2 * tenth :]
    busiest = max(customers, key=lambda customer: run.ledger.snapshot()[customer])
    for each in stalled:
        each.customer = busiest
    seconds = STALLED_S + (20 if run.quick else 90)
    sizes: list[float] = []
    readers = steady + fleeting

    async def look() -> None:
        for _ in range(10):
            await asyncio.sleep(seconds / 10)
            sizes.append(await asyncio.to_thread(resident_mb, api.pid))
        metrics = (await asyncio.to_thread(httpx.get, f"{url}/metrics")).text
        found = re.search(r"^segue_api_streams (\d+)", metrics, re.MULTILINE)
        run.count("streams at the end", int(found[1]) if found else 1_000_000)
        there = await asyncio.to_thread(run.store.documents)
        last = {document["identifiers"][0]["value"]: document["revision"] for document in there}
        for _ in range(100):
            run.counts["behind"] = sum(each.told < last[each.customer] for each in readers)
            if not run.counts["behind"]:
                break
            await asyncio.sleep(0.1)

    async def all_at_once() -> None:
        watching = [
            *(asyncio.create_task(each.stall()) for each in stalled),
            *(asyncio.create_task(each.come_and_go()) for each in fleeting),
            *(asyncio.create_task(each.watch()) for each in steady),
        ]
        await look()
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)

    asyncio.run(all_at_once())
    run.counts |= {"steady": len(steady), "fleeting": len(fleeting), "stalled": len(stalled)}
    run.counts["grown by MB"] = round(sizes[-1] - sizes[2])
    run.counts["fell"] = sum(each.fell for each in readers)
    run.expect(sizes[-1] - sizes[2] < 50, f"the API grew from {sizes[2]:.0f} to {sizes[-1]:.0f} MB")
    run.expect(run.counts["streams at the end"] <= len(readers), "a client that takes nothing was kept")
    run.expect(not run.counts["behind"], "a client was not told the last revision of its customer")
    run.expect(not run.counts["fell"], "a client was told an older revision than before")
    run.healed()
