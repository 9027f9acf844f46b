"""Child processes that never outlive their owner, for the servers Segue starts by itself."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TAIL_BYTES = 4096


def spawn_bound_child(
    command: Sequence[str],
    *,
    output: IO[bytes],
    keep_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server that ends with this process, however this process ends.

    On Linux the kernel sends it SIGKILL when its parent is gone. Parent means the *thread* that
    forked, so a thread made for the purpose forks, and stays as long as the child lives. The child
    gets a session of its own: Ctrl-C in the terminal is for the owner, who then stops it in order.

    Its standard output and error go to ``output``; ``environment`` None means ours. Raises
    ``OSError`` when it cannot be executed.
    """
    outcome: list[subprocess.Popen[bytes] | BaseException] = []
    spawned = threading.Event()

    def fork_and_wait() -> None:
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_death_with_parent(),  # noqa: PLW1509 - it takes no lock, see there
                pass_fds=keep_fds,
            )
        except BaseException as error:
            outcome.append(error)
            return
        else:
            outcome.append(process)
        finally:
            spawned.set()
        process.wait()

    name = f"keeper of {Path(command[0]).name}"
    threading.Thread(target=fork_and_wait, name=name, daemon=True).start()
    spawned.wait()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def end_child(process: subprocess.Popen[bytes], how: signal.Signals, *, grace_ms: int) -> None:
    """Send ``how`` and wait; SIGKILL after ``grace_ms``. Does nothing to a child that has ended."""
    if process.poll() is None:
        process.send_signal(how)
    try:
        process.wait(grace_ms / 1000)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail_of(logfile: Path, start: int = 0) -> str:
    """The last lines that ``logfile`` got after byte ``start``, for the text of an error."""
    try:
        with logfile.open("rb") as log:
            log.seek(max(start, logfile.stat().st_size - _TAIL_BYTES))
            return log.read().decode(errors="replace").strip() or "(nothing was logged)"
    except OSError as error:
        return f"(no log: {error})"


def _death_with_parent() -> Callable[[], None] | None:
    """What the forked child runs before exec, or None where the kernel has no such signal.

    Whatever could take a lock happens here, before the fork: in the forked child another thread's
    lock would stay taken for ever.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.PyDLL(None).prctl
    prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
    getppid, leave, parent = os.getppid, os._exit, os.getpid()
    # SIGKILL, because SIGTERM would wait in a stopped process until it is continued: never.
    death_signal = int(signal.SIGKILL)

    def bind_to_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if getppid() != parent:  # it died between fork and prctl
            leave(1)

    return bind_to_parent
