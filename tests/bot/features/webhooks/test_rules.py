"""Decisions about webhooks: which addresses are allowed, and when an event is sent again."""

from __future__ import annotations

import ipaddress

import pytest

from bot.domain.errors import UserError
from bot.features.webhooks.rules import (
    EVENTS,
    JITTER,
    MAX_RETRY_AFTER,
    RETRY_SECONDS,
    PrivateHosts,
    check_addresses,
    check_url,
    is_public,
    parse_events,
    retry_delay,
)

NOBODY = PrivateHosts()
PRIVATE = """
    0.0.0.0 10.0.0.1 100.64.0.1 127.0.0.1 127.1.2.3 169.254.169.254 172.16.0.1 192.0.0.1 192.168.1.1 198.18.0.1
    224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 fe80::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1
    ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1 2002:7f00:1:: 2002:c0a8:101::1 2001:db8::1 fe80::1%eth0
"""
PUBLIC = ("1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101")


@pytest.mark.parametrize("text", PRIVATE.split())
def test_a_private_address_is_not_public_however_it_is_wrapped(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))
    with pytest.raises(UserError, match="is not public"):
        check_addresses("hooks.example", [ipaddress.ip_address("1.1.1.1"), ipaddress.ip_address(text)], NOBODY)


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))
    check_addresses("hooks.example", [ipaddress.ip_address(text)], NOBODY)


@pytest.mark.parametrize("url", ["https://hooks.example/a?b=c", "https://1.1.1.1:8443/", "https://[2606:4700::1111]/"])
def test_a_public_address_with_tls_is_allowed(url: str) -> None:
    assert check_url(url, NOBODY) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "ftp://hooks.example/",
        "https://",
        "https:///a",
        "https://user@hooks.example/",
        "https://user:word@hooks.example/",
        "https://hooks.example:99999/",
        "https://hooks.example\\@127.0.0.1/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "http://hooks.example/",
        "http://1.1.1.1/",
        "https://hooks.example/\n",
        "https://höoks.example/",
        "https://a.example/" + "a" * 500,
        "javascript:alert(1)",
        "https://169.254.169.254/latest/meta-data",
    ],
)
def test_any_other_address_is_refused(url: str) -> None:
    with pytest.raises(UserError):
        check_url(url, NOBODY)


def test_the_operator_lists_private_hosts_by_name_address_or_network() -> None:
    hosts = PrivateHosts.parse(["Hooks.LAN.", "10.0.0.7", "fd00::/8"])
    for url in ("http://hooks.lan/a", "http://10.0.0.7:9000/", "http://[fd12::1]/", "https://hooks.lan/"):
        assert check_url(url, hosts) == url
    check_addresses("hooks.lan", [ipaddress.ip_address("192.168.1.9")], hosts)
    check_addresses("other.example", [ipaddress.ip_address("10.0.0.7")], hosts)
    with pytest.raises(UserError, match="is not public"):
        check_addresses("other.example", [ipaddress.ip_address("10.0.0.8")], hosts)


def test_events_have_short_names_and_the_order_of_a_job() -> None:
    assert parse_events(["finished", "job.queued"]) == ("job.queued", "job.finished")
    assert parse_events(EVENTS) == EVENTS
    with pytest.raises(UserError, match="There is no event 'sent': there are queued, started, preview"):
        parse_events(["sent"])
    with pytest.raises(UserError, match="needs an event"):
        parse_events([])


def test_pauses_grow_spread_and_end() -> None:
    for tries, seconds in enumerate(RETRY_SECONDS, 1):
        shortest = retry_delay(tries, 0.0)
        longest = retry_delay(tries, 1.0)
        assert shortest == pytest.approx(seconds * (1 - JITTER / 2))
        assert longest == pytest.approx(seconds * (1 + JITTER / 2))
    assert list(RETRY_SECONDS) == sorted(RETRY_SECONDS)
    assert retry_delay(len(RETRY_SECONDS) + 1, 0.5) is None


def test_an_endpoint_may_ask_for_a_longer_pause_but_not_for_a_shorter_one() -> None:
    assert retry_delay(1, 0.5, retry_after=90.0) == 90.0
    assert retry_delay(1, 0.5, retry_after=1.0) == RETRY_SECONDS[0]
    assert retry_delay(1, 0.5, retry_after=1e9) == MAX_RETRY_AFTER
