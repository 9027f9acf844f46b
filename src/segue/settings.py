"""Settings, from the environment (`SEGUE_...`) or a `.env` file; wrong ones are refused at start, by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from segue.core.channels import Channel
from segue.core.context import Policy
from segue.errors import SettingsError
from segue.rejections import Limit
from segue.store.address import parse

PREFIX = "SEGUE_"
Awaited = Literal["cart", "checkout", "form", "queue"]
NOT_SETTINGS = ("SEGUE_TEST_", "SEGUE_REQUIRE_", "SEGUE_BENCH_")
"""Variables of the tests and benchmarks."""


class Settings(BaseSettings):
    """All settings. `segue config` prints them with their sources' names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    kafka: str | None = None
    """Bootstrap address of Kafka, e.g. `localhost:9092`. Not set: the embedded log."""
    kafka_options: dict[str, str] = {}
    """More settings for every Kafka client, as JSON, by librdkafka's names (security, SASL, TLS)."""
    redis: str | None = None
    """URL of Redis or Valkey, e.g. `redis://localhost:6379/0`, or of its Sentinels,
    `redis+sentinel://host1:26379,host2:26379/mymaster/0`. Not set: an embedded Valkey."""
    data_dir: Path = Path(".segue")
    """Where the embedded log and store keep their files."""
    embedded_sync: Literal["full", "normal"] = "normal"
    """`full`: the embedded log also survives a power cut, at an fsync per commit."""

    api_host: str = "127.0.0.1"
    api_port: Annotated[int, Field(ge=0, le=65535)] = 8321
    api_url: str | None = None
    """Where the client, the importer and `segue stats` find the API. Not set: host and port above."""

    partitions: Annotated[int, Field(ge=1, le=1024)] = 6
    """Of interactions, steps and signals: the most processes that can share the work. A transaction costs the
    broker by the partitions it touches, so no more than you will need."""
    event_partitions: Annotated[int, Field(ge=1, le=1024)] = 2
    """Of each channel's topic."""
    replication: Annotated[int, Field(ge=1, le=9)] = 1
    """Copies of each Kafka topic. Three, with min.insync.replicas 2, for anything that matters."""

    batch_records: Annotated[int, Field(ge=1, le=100_000)] = 2000
    cache_mb: Annotated[int, Field(ge=1)] = 200
    """Memory, about, for the documents a processor keeps; the rest are read from Redis when needed."""
    reject_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """When more than this share of a partition's last 1,000 records is refused, it is stopped; 0: never."""
    reject_run: Annotated[int, Field(ge=0)] = 100
    """When so many records in a row are refused, the partition is stopped; 0: never."""

    session_gap_s: Annotated[int, Field(ge=1)] = 1800
    channel_gaps_s: dict[Channel, Annotated[int, Field(ge=1, le=86_400)]] = {}
    """Gaps of single channels, as JSON, e.g. `{"email": 86400}`: how far a session reaches after an event there."""
    session_max_s: Annotated[int, Field(ge=60)] = 86_400
    hold_max_s: Annotated[int, Field(ge=60)] = 14_400
    """How long a call or conversation that nobody ended holds a session open."""
    grace_s: Annotated[int, Field(ge=0)] = 600
    abandoned_after_s: dict[Awaited, Annotated[int, Field(ge=1, le=604_800)]] = {}
    """When what was begun counts as abandoned, as JSON. Without it, as if
    `{"cart": 3600, "checkout": 1800, "form": 1800, "queue": 900}` were set."""
    phone_region: str | None = None
    """Region of phone numbers written without a country code, e.g. `CN`. Not set: such numbers are not used."""
    rules: Path | None = None
    """A rule file of your own instead of the shipped one."""
    instance: str | None = None
    """Name of this process among its group. Give it a name that survives a restart (a pod's ordinal): it then takes
    its partitions again at once, after a kill too; those of one that stays away pass to others after 6 s. Not set: a
    new name each start."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("phone_region")
    @classmethod
    def _known_region(cls, value: str | None) -> str | None:
        if value is None:
            return None
        from phonenumbers import SUPPORTED_REGIONS

        if value.upper() not in SUPPORTED_REGIONS:
            raise ValueError("not a two-letter region such as CN or GB")
        return value.upper()

    @field_validator("redis")
    @classmethod
    def _redis_url(cls, value: str | None) -> str | None:
        if value is not None:
            parse(value)
        return value

    @property
    def api(self) -> str:
        """Base URL of the HTTP API."""
        return (self.api_url or f"http://{self.api_host}:{self.api_port}").rstrip("/")

    @property
    def limit(self) -> Limit:
        """How much of a partition may be refused."""
        return Limit(self.reject_share, self.reject_run)

    @property
    def policy(self) -> Policy:
        """The numbers of the core."""
        return Policy(
            session_gap_ms=self.session_gap_s * 1000,
            channel_gaps_ms={channel: gap_s * 1000 for channel, gap_s in self.channel_gaps_s.items()},
            session_max_ms=self.session_max_s * 1000,
            hold_max_ms=self.hold_max_s * 1000,
            grace_ms=self.grace_s * 1000,
            abandoned_after_ms={what: after_s * 1000 for what, after_s in self.abandoned_after_s.items()},
        )


def _refuse_unknown(environment: Iterable[str]) -> None:
    """A setting that nobody reads is a typing error; better refused than ignored."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in environment:
        if name.startswith(PREFIX) and name not in known and not name.startswith(NOT_SETTINGS):
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else "; `segue config` lists the settings"
            raise SettingsError(f"{name}: there is no such setting{hint}")


def load(**overrides: object) -> Settings:
    """Read the settings. Raises SettingsError naming every wrong one as the environment variable it is."""
    _refuse_unknown(os.environ)
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"{PREFIX}{'_'.join(str(part) for part in wrong['loc']).upper()}: {wrong['msg']}"
            for wrong in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError("; ".join(lines)) from None
