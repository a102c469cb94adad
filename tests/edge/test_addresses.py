from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.edge.addresses import Addresses, client_address, parse_networks, plain

PROXIES = parse_networks(["10.0.0.0/8", "192.0.2.7", "2001:db8:f::/48"])


def asked(*values: str, peer: str = "10.0.0.1") -> str:
    headers = [(b"host", b"x"), *((b"x-forwarded-for", value.encode("latin-1")) for value in values)]
    return client_address(peer, headers, PROXIES)


def test_what_a_peer_that_is_not_trusted_says_is_not_heard() -> None:
    assert asked("198.51.100.1", peer="203.0.113.9") == "203.0.113.9"
    assert asked("198.51.100.1", peer="2001:db8::9") == "2001:db8::9"
    assert asked("198.51.100.1", peer="") == ""


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ((), "10.0.0.1"),
        (("198.51.100.1",), "198.51.100.1"),
        (("1.1.1.1, 198.51.100.1",), "198.51.100.1"),
        (("1.1.1.1, 198.51.100.1, 192.0.2.7 ,\t10.9.9.9",), "198.51.100.1"),
        (("1.1.1.1", "198.51.100.1", "10.9.9.9"), "198.51.100.1"),
        (("198.51.100.1:4711",), "198.51.100.1"),
        (("2001:DB8:0::1",), "2001:db8::1"),
        (("[2001:db8::1]",), "2001:db8::1"),
        (("[2001:db8::1]:443, 2001:db8:f::2",), "2001:db8::1"),
        (("::ffff:198.51.100.1",), "198.51.100.1"),
        (("198.51.100.1, ::ffff:10.0.0.2",), "198.51.100.1"),
        (("10.3.3.3, 10.2.2.2",), "10.3.3.3"),
    ],
)
def test_it_is_the_right_most_that_is_not_trusted(values: tuple[str, ...], address: str) -> None:
    assert asked(*values) == address


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        " ",
        "unknown",
        "_hidden",
        "198.51.100",
        "198.51.100.01",
        "198.51.100.1:",
        "198.51.100.1:x",
        "198.51.100.1:65536",
        "198.51.100.1 2",
        "[198.51.100.1]",
        "[2001:db8::1",
        "2001:db8::1]",
        "[2001:db8::1]x",
        "fe80::1%eth0",
        '"198.51.100.1"',
        "for=198.51.100.1",
        "\xb9.1.1.1",
        "1" * 5000,
    ],
)
def test_behind_a_malformed_entry_nothing_is_believed(malformed: str) -> None:
    assert asked(f"198.51.100.1, {malformed}, 10.2.2.2") == "10.2.2.2"
    assert asked("198.51.100.1", f"{malformed}") == "10.0.0.1"


@given(st.binary(max_size=40))
def test_whatever_comes_an_address_is_found(value: bytes) -> None:
    ip_address(client_address("10.0.0.1", [(b"x-forwarded-for", value)], PROXIES))


@given(st.lists(st.ip_addresses(), min_size=1), st.booleans())
def test_what_clients_invent_in_front_changes_nothing(invented: list[object], port: bool) -> None:  # noqa: FBT001
    real = "198.51.100.1:80" if port else "198.51.100.1"
    assert asked(", ".join([*map(str, invented), real, "10.1.1.1"])) == "198.51.100.1"


def test_the_kernels_names_are_made_plain() -> None:
    assert plain("::ffff:192.0.2.1") == "192.0.2.1"
    assert plain("fe80::1%eth0") == "fe80::1"
    assert plain("192.0.2.1") == "192.0.2.1"


def test_connections_are_counted_until_they_leave_and_then_forgotten() -> None:
    addresses = Addresses(2, ())
    for connection in ("a", "b"):
        assert not addresses.full("192.0.2.1")
        addresses.enter(connection, "192.0.2.1")
    assert addresses.full("192.0.2.1")
    assert not addresses.full("192.0.2.2")
    for connection in ("a", "a", "b", "never came"):
        addresses.leave(connection)

    assert not addresses.full("192.0.2.1")
    assert (len(addresses), addresses._counts) == (0, {})


def test_nothing_is_kept_that_no_setting_needs() -> None:
    addresses = Addresses(None, ())
    addresses.enter("a", "192.0.2.1")

    assert len(addresses) == 0
    assert addresses.of("a") is None


def test_an_address_that_a_proxy_has_told_is_kept() -> None:
    addresses = Addresses(None, PROXIES)
    addresses.enter("a", "192.0.2.1")
    assert addresses.of("a") == "192.0.2.1"
    addresses.leave("a")

    assert (len(addresses), addresses._counts) == (0, {})
