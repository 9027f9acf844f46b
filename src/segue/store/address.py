"""Where Redis is: SEGUE_REDIS, taken apart. Knows no client, so that settings can be checked without one.

    redis://[user:password@]host:port/db          one server (rediss: TLS, unix: a socket)
    redis+sentinel://[user:password@]host[:26379][,host...]/service[/db][?option=value]

The second form is the one of other Python projects, redis-py having none. User and password are the
servers'; the Sentinels' own are the options `sentinel_username` and `sentinel_password`. All other options
are redis-py's.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

SINGLE = ("redis", "rediss", "unix")
SENTINEL = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
EXPECTED = "expected a URL such as redis://localhost:6379/0, or of Sentinels: redis+sentinel://host1:26379,host2:26379/mymaster/0"


class Address(NamedTuple):
    """A Redis by its URL, or a service that Sentinels know the master of."""

    url: str
    """As redis-py takes it. With `sentinels`, its host means nothing."""
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_options: tuple[tuple[str, str], ...] = ()
    """User name and password for the Sentinels themselves."""


def parse(url: str) -> Address:
    """Take an address apart. Raises ValueError that says what is wrong and never repeats a password."""
    scheme, _, rest = url.partition("://")
    if scheme in SINGLE and rest:
        return Address(url)
    if scheme not in SENTINEL:
        raise ValueError(EXPECTED)
    place, _, query = rest.partition("?")
    hosts, _, path = place.partition("/")
    credentials, at, hosts = hosts.rpartition("@")
    service, _, database = path.partition("/")
    if not hosts or not service:
        raise ValueError(f"a host and the name of the master are missing; {EXPECTED}")
    if database and not database.isdecimal():
        raise ValueError(f"the part behind the master's name is the number of a database; {EXPECTED}")
    options = parse_qsl(query)
    ours = tuple((name.removeprefix("sentinel_"), value) for name, value in options if name.startswith("sentinel_"))
    theirs = urlencode([(name, value) for name, value in options if not name.startswith("sentinel_")])
    return Address(
        f"{scheme.partition('+')[0]}://{credentials}{at}sentinel/{database or 0}" + (f"?{theirs}" if theirs else ""),
        tuple(_host(each) for each in hosts.split(",")),
        unquote(service),
        ours,
    )


def _host(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    try:
        port = parts.port or SENTINEL_PORT
    except ValueError:
        raise ValueError(f"the port of a Sentinel is not a number; {EXPECTED}") from None
    if not parts.hostname:
        raise ValueError(f"a Sentinel without a host; {EXPECTED}")
    return parts.hostname, port
