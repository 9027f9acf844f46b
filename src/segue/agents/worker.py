"""A Faust app set up for our topics: committed records only, at least once, nothing created that is ours.

Faust reads uncommitted records unless it runs with its own transactions, which do not survive a kill -9
(docs/adr/0004); but journey steps are written in transactions, and an aborted one must not raise a signal.
So the consumer is told to read committed records by the subclasses below; a test holds that against Kafka.
"""

from __future__ import annotations

import logging
import os
import ssl
from typing import Any

import faust
from faust.transport.drivers import aiokafka as driver
from faust.types.auth import AuthProtocol

from segue import runtime
from segue.errors import SettingsError
from segue.settings import Settings, load
from segue.topics import JOURNEY_STEPS, SIGNALS

EXIT_FAILED = 70
"""Exit code after an agent's exception (EX_SOFTWARE of sysexits.h)."""

_log = logging.getLogger(__name__)


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # aiokafka hands this to its fetcher when it starts; Faust has no setting for it.
        assert consumer._isolation_level in ("read_uncommitted", "read_committed")
        consumer._isolation_level = "read_committed"
        return consumer

    async def seek_to_committed(self) -> Any:
        """Also those partitions that have no committed offset yet, which Faust leaves where they are."""
        found = await super().seek_to_committed()
        never = [tp for tp, offset in found.items() if not offset and not self.consumer._is_changelog_tp(tp)]
        if never and self.app.conf.consumer_auto_offset_reset == "earliest":
            await self.call_thread(self._ensure_consumer().seek_to_beginning, *never)
        return found


class _Consumer(driver.Consumer):  # type: ignore[misc]
    def _new_consumer_thread(self) -> Any:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def resume_partitions(self, tps: Any) -> None:
        # Once the tables are restored, Faust lets the streams' records flow in, and a moment later empties the
        # queues they went to: those records are never processed. So hold them until `resume_flow`, which follows.
        if not all(self._is_changelog_tp(tp) for tp in tps):
            self.stop_flow()
        super().resume_partitions(tps)

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        # Called at every transaction's marker, with the record behind it as `offset_to`. Faust counts that record
        # into the gap, stumbles over counting it twice, and so commits one transaction per interval.
        await super()._add_gap(tp, offset_from, offset_to - 1)


class _Transport(driver.Transport):  # type: ignore[misc]
    Consumer = _Consumer


class _App(faust.App):  # type: ignore[misc]
    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    def _create_directories(self) -> None:
        if self.conf.store.scheme != "memory":  # which keeps nothing in files
            self.conf.datadir.mkdir(parents=True, exist_ok=True)
            super()._create_directories()

    async def _on_agent_error(self, agent: Any, error: BaseException) -> None:
        """End the process. Faust would count the record as done and go on with the next one: a record lost.

        Ended at once, the process has not committed it, and whoever restarts the process reads it again.
        """
        _log.critical("agent %s failed; ending so that the record is read again", agent.name, exc_info=error)
        logging.shutdown()
        os._exit(EXIT_FAILED)


def app(name: str, settings: Settings | None = None, **options: Any) -> faust.App:
    """Return a Faust app in the consumer group `name`, on the Kafka that the settings name.

    `options` are Faust's own and win. Raises SettingsError without SEGUE_KAFKA.
    """
    found = settings or load()
    if found.kafka is None:
        raise SettingsError("SEGUE_KAFKA: not set; agents in Faust need Kafka, the embedded log is not enough")
    instance = {"consumer_group_instance_id": found.instance} if found.instance else {}
    ours: dict[str, Any] = {
        "broker": [f"kafka://{address.strip()}" for address in found.kafka.split(",")],
        "broker_credentials": _credentials(found.kafka_options),
        "broker_session_timeout": 10.0,
        "broker_heartbeat_interval": 1.0,
        "broker_commit_interval": 1.0,
        "consumer_auto_offset_reset": "earliest",
        "processing_guarantee": "at_least_once",
        "store": "memory://",
        "table_standby_replicas": 0,
        "topic_partitions": found.partitions,
        "topic_replication_factor": found.replication,
        "topic_disable_leader": True,
        "web_enabled": False,
        "datadir": found.data_dir / "agents",
        "worker_redirect_stdouts": False,
        **instance,
    }
    return _App(name, **(ours | options))


def run(agents: faust.App, settings: Settings) -> None:
    """Run an app in this process until Ctrl-C or SIGTERM. Our topics must be there."""
    source = runtime.open_log(settings)
    missing = [name for name in (JOURNEY_STEPS, SIGNALS) if not source.partitions(name)]
    source.close()
    if missing:
        raise SettingsError(f"no topic {' and no '.join(missing)} at {settings.kafka}: run `segue topics create`")
    faust.Worker(agents, loglevel=settings.log_level).execute_from_commandline()


def _credentials(options: dict[str, str]) -> Any:
    """Faust's credentials from librdkafka's names. What cannot be carried over is refused, not left out."""
    given = {name: value for name, value in options.items() if name.split(".")[0] in ("security", "sasl", "ssl")}
    protocol = given.pop("security.protocol", "plaintext").upper()
    user, password = given.pop("sasl.username", None), given.pop("sasl.password", None)
    mechanism = given.pop("sasl.mechanism", given.pop("sasl.mechanisms", None))
    context = None
    if protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=given.pop("ssl.ca.location", None))
        if certificate := given.pop("ssl.certificate.location", None):
            key, secret = given.pop("ssl.key.location", None), given.pop("ssl.key.password", None)
            context.load_cert_chain(certificate, key, secret)
    if given:
        raise SettingsError(f"SEGUE_KAFKA_OPTIONS: agents in Faust do not know {', '.join(sorted(given))}")
    if protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=user,
            password=password,
            mechanism=mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


__all__ = ["EXIT_FAILED", "AuthProtocol", "app", "run"]
