"""Hosts, origins, tokens and cookies: the rules of access, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.domain.errors import UserError
from bot.web.auth import (
    MAX_INVITATIONS,
    HostPolicy,
    SessionTokens,
    Visitor,
    load_or_create_key,
    parse_host_name,
    terminal_key,
)

HERE = HostPolicy.from_settings("127.0.0.1", "", ())
EVERYWHERE = HostPolicy.from_settings("0.0.0.0", "", ("studio.example:8443",))
PROXIED = HostPolicy.from_settings("127.0.0.1", "https://pictures.example/", ("other.example",))


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost:8189", "localhost"),
        ("[::1]:8189", "::1"),
        ("LOCALHOST", "localhost"),
        ("a@b", ""),
        ("host/path", ""),
        ("host:port", ""),
        ("[::1", ""),
        ("", ""),
    ],
)
def test_a_host_header_is_parsed_or_rejected(host: str, name: str) -> None:
    assert parse_host_name(host) == name


def test_only_a_page_for_this_computer_is_open_to_all() -> None:
    assert HERE.is_local
    assert HostPolicy.from_settings("::1", "", ("localhost",)).is_local
    assert not EVERYWHERE.is_local
    assert not PROXIED.is_local
    assert not HostPolicy.from_settings("127.0.0.1", "", ("other.example",)).is_local


@pytest.mark.parametrize("host", ["127.0.0.1:8189", "localhost:1", "[::1]:8189", "127.0.0.2"])
def test_names_of_this_computer_are_known_everywhere(host: str) -> None:
    assert all(door.is_known_host(host) for door in (HERE, EVERYWHERE, PROXIED))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8189", "127.0.0.1.evil.example", "192.168.1.9", "", "x@y"]
)
def test_a_dns_name_rebound_to_this_computer_is_rejected(host: str) -> None:
    assert not HERE.is_known_host(host)


def test_a_public_page_knows_its_addresses_and_allowed_names_only() -> None:
    assert EVERYWHERE.is_known_host("192.168.1.9:8189")
    assert EVERYWHERE.is_known_host("studio.example")
    assert not EVERYWHERE.is_known_host("evil.example")
    assert PROXIED.is_known_host("pictures.example")
    assert PROXIED.is_known_host("OTHER.example:443")
    assert not PROXIED.is_known_host("192.168.1.9")


@pytest.mark.parametrize(
    ("door", "method", "headers"),
    [
        (HERE, "GET", {"Host": "localhost:1"}),
        (HERE, "POST", {"Host": "localhost:1", "Origin": "http://localhost:1", "Content-Type": "application/json"}),
        (HERE, "POST", {"Host": "localhost:1"}),
        (HERE, "DELETE", {"Host": "localhost:1"}),
        (HERE, "POST", {"Host": "localhost:1", "Content-Type": "application/json; charset=utf-8"}),
        (HERE, "GET", {"Host": "localhost:1", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
        (PROXIED, "POST", {"Host": "localhost:1", "Origin": "https://pictures.example"}),
        (PROXIED, "POST", {"Host": "pictures.example", "Origin": "https://pictures.example"}),
        (HERE, "POST", {"Host": "localhost:1", "Content-Type": "multipart/form-data", "Authorization": "bearer x"}),
    ],
)
def test_requests_of_our_own_page_are_accepted(door: HostPolicy, method: str, headers: dict[str, str]) -> None:
    door.check_request(method, headers)


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Host": "evil.example"}, 403),
        ("GET", {}, 403),
        ("POST", {"Host": "localhost:1", "Origin": "https://evil.example"}, 403),
        ("POST", {"Host": "localhost:1", "Origin": "null"}, 403),
        ("POST", {"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ("POST", {"Host": "localhost:1", "Origin": "file://localhost:1"}, 403),
        ("GET", {"Host": "localhost:1", "Origin": "https://evil.example"}, 403),
        ("GET", {"Host": "localhost:1", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("GET", {"Host": "localhost:1", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403),
        ("POST", {"Host": "localhost:1", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ("POST", {"Host": "localhost:1", "Content-Type": "text/plain"}, 403),
        ("POST", {"Host": "localhost:1", "Content-Type": "application/x-www-form-urlencoded"}, 403),
        ("POST", {"Host": "localhost:1", "Content-Type": "multipart/form-data", "Authorization": "Basic eA=="}, 403),
    ],
)
def test_requests_that_another_site_could_send_are_refused(method: str, headers: dict[str, str], status: int) -> None:
    with pytest.raises(UserError) as error:
        HERE.check_request(method, headers)
    assert error.value.status == status


PROXY_SIGNS = (
    "Forwarded",
    "X-Forwarded-For",
    "X-Real-IP",
    "Via",
    "x-forwarded-host",
    "X-FORWARDED-PROTO",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded-Prefix",
    "CF-Connecting-IP",
    "cf-ray",
    "True-Client-IP",
    "X-Client-IP",
)


def test_a_page_for_this_computer_accepts_no_http_1_0() -> None:
    """nginx speaks it to what it forwards to."""
    with pytest.raises(UserError, match="behind a proxy: set DARKROOM_PUBLIC_URL"):
        HERE.check_request("GET", {"Host": "localhost:1"}, is_http_1_0=True)
    PROXIED.check_request("GET", {"Host": "localhost:1"}, is_http_1_0=True)


@pytest.mark.parametrize("header", PROXY_SIGNS)
def test_a_page_for_this_computer_accepts_no_one_from_a_proxy(header: str) -> None:
    headers = {"Host": "localhost:1", header: "for=192.0.2.9"}
    with pytest.raises(UserError, match="behind a proxy: set DARKROOM_PUBLIC_URL") as error:
        HERE.check_request("GET", headers)
    assert error.value.status == 403
    PROXIED.check_request("GET", headers)


def test_an_invitation_lets_one_visitor_in_once() -> None:
    gate = SessionTokens(b"k" * 32)
    token = gate.create_invitation(for_operator=True)
    visitor = gate.exchange_token(token)
    assert visitor is not None
    assert visitor.is_operator
    assert gate.exchange_token(token) is None
    assert gate.exchange_token("") is None


def test_old_invitations_lapse() -> None:
    gate = SessionTokens(b"k" * 32)
    tokens = [gate.create_invitation() for _ in range(MAX_INVITATIONS + 1)]
    assert gate.exchange_token(tokens[0]) is None
    guest = gate.exchange_token(tokens[-1])
    assert guest is not None
    assert not guest.is_operator


def test_invitations_leave_the_owners_token_alone() -> None:
    gate = SessionTokens(b"k" * 32)
    owners = gate.create_invitation(for_operator=True)
    for _ in range(MAX_INVITATIONS + 1):
        gate.create_invitation()
    visitor = gate.exchange_token(owners)
    assert visitor is not None
    assert visitor.is_operator


def test_a_known_visitor_keeps_their_id() -> None:
    gate = SessionTokens(b"k" * 32)
    visitor = gate.exchange_token(gate.create_invitation(for_operator=True), "ab12")
    assert visitor == Visitor("ab12", is_operator=True)
    newcomers = [gate.exchange_token(gate.create_invitation()) for _ in "ab"]
    assert len({newcomer.id for newcomer in newcomers if newcomer}) == 2


def test_a_key_that_others_may_read_is_closed_to_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = load_or_create_key(tmp_path)
    (tmp_path / "web.key").chmod(0o644)
    assert load_or_create_key(tmp_path) == key
    assert (tmp_path / "web.key").stat().st_mode & 0o777 == 0o600
    assert "others could read" in caplog.text


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    key = load_or_create_key(tmp_path)
    assert load_or_create_key(tmp_path) == key
    assert (tmp_path / "web.key").stat().st_mode & 0o777 == 0o600
    gate = SessionTokens(key)
    assert gate.is_terminal_key(f"Bearer {terminal_key(tmp_path)}")
    assert gate.is_terminal_key(f"bearer {terminal_key(tmp_path)}")
    assert not gate.is_terminal_key(f"Basic {terminal_key(tmp_path)}")
    assert not gate.is_terminal_key("Bearer ")
    assert not gate.is_terminal_key("Bearer \udcff")


def test_a_new_key_makes_the_old_one_worthless(tmp_path: Path) -> None:
    load_or_create_key(tmp_path)
    old_authorization = f"Bearer {terminal_key(tmp_path)}"
    (tmp_path / "web.key").unlink()
    gate = SessionTokens(load_or_create_key(tmp_path))
    assert not gate.is_terminal_key(old_authorization)
    assert gate.is_terminal_key(f"Bearer {terminal_key(tmp_path)}")


def test_a_damaged_key_is_reported(tmp_path: Path) -> None:
    (tmp_path / "web.key").write_bytes(b"short")
    with pytest.raises(UserError, match=r"web\.key"):
        load_or_create_key(tmp_path)


def test_an_empty_key_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "web.key").touch()
    key = load_or_create_key(tmp_path)
    assert len(key) == 32
    assert load_or_create_key(tmp_path) == key
    assert [one.name for one in tmp_path.iterdir()] == ["web.key"]
    assert (tmp_path / "web.key").stat().st_mode & 0o777 == 0o600
