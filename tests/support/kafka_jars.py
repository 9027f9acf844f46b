"""Apache Kafka's jars and a Java to run them: found, or fetched once into a cache.

The cache is ``~/.cache/segue-tests/kafka-<version>``, or that folder under ``SEGUE_TEST_CACHE``.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

POM = Path(__file__).parents[1] / "kafka" / "pom.xml"
OLDEST_JAVA = 17  # Kafka 4 brokers need it
_DOWNLOAD_TIMEOUT_S = 900.0


class KafkaUnavailable(Exception):
    """This machine cannot run the broker; ``reason`` says what is missing."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@cache
def find_java() -> str:
    """The ``java`` of ``JAVA_HOME`` or else of the PATH. Raises ``KafkaUnavailable``."""
    of_home = Path(os.environ.get("JAVA_HOME", "/nowhere"), "bin", "java")
    java = str(of_home) if of_home.exists() else shutil.which("java")
    if java is None:
        raise KafkaUnavailable("no java on PATH")
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError) as error:
        raise KafkaUnavailable(f"{java} does not run: {error}") from error
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < OLDEST_JAVA:
        raise KafkaUnavailable(f"{java} is older than Java {OLDEST_JAVA}: {said.splitlines()[:1]}")
    return java


def find_javac() -> str:
    """The compiler beside ``find_java``. Raises ``KafkaUnavailable`` where only a runtime is installed."""
    beside = Path(find_java()).with_name("javac")
    found = str(beside) if beside.exists() else shutil.which("javac")
    if found is None:
        raise KafkaUnavailable("no javac on PATH (a Java runtime, not a development kit)")
    return found


def cache_folder() -> Path:
    """Where what was fetched or compiled stays."""
    return Path(os.environ.get("SEGUE_TEST_CACHE") or "~/.cache/segue-tests").expanduser().resolve()


def fetch_jars(pom: Path = POM) -> Path:
    """The folder with the jars that a POM lists, fetched by Maven when it is not there. Raises ``KafkaUnavailable``.

    The folder appears under its name only when it is complete. So an interrupted run leaves no
    half of it, and of several runs at once the first one fetches and the others wait.
    """
    root = cache_folder()
    jars = root / _folder_name(pom)
    if jars.exists():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailable("no mvn on PATH to fetch jars with")
    import fcntl  # not on Windows; there neither does the broker's stopping and pausing exist

    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{jars.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.exists():
            with tempfile.TemporaryDirectory(prefix=f"{jars.name}.", dir=root) as unfinished:
                complete = Path(unfinished) / "jars"
                _copy_dependencies(maven, pom, complete)
                complete.rename(jars)
    return jars


def _folder_name(pom: Path) -> str:
    if pom == POM:
        return f"kafka-{kafka_version()}"
    return f"{pom.parent.name}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:8]}"


def _copy_dependencies(maven: str, pom: Path, target: Path) -> None:
    goal = ["dependency:copy-dependencies", f"-DoutputDirectory={target}"]
    command = [maven, "-q", "-B", "-Dstyle.color=never", "-f", str(pom), *goal]
    try:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KafkaUnavailable(f"mvn did not fetch the jars of {pom.parent.name}: {error}") from error
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stdout.splitlines() if "ERROR" in line), error.stdout)
        raise KafkaUnavailable(f"mvn could not fetch the jars of {pom.parent.name}: {said.strip()}") from error


def kafka_version() -> str:
    """The version of Kafka that tests run against; the POM is where it stands."""
    version = ElementTree.parse(POM).findtext(".//{*}properties/{*}kafka.version")
    if not version:
        raise RuntimeError(f"{POM} names no kafka.version")
    return version
