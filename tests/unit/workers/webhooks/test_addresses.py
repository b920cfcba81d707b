"""A producer's URL opens nothing inside: only public addresses, or networks allowed by name."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from workers.webhooks.addresses import AddressBlocked, AddressPolicy, address_group


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "192.88.99.1",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "fe80::1",
        "fc00::1",
        "fec0::1",
        "ff02::1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "192.0.0.8",
        "192.0.0.192",
        "192.0.2.1",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "239.1.1.1",
        "240.0.0.1",
        "::127.0.0.1",
        "::169.254.169.254",
        "::8.8.8.8",
        "::ffff:0:127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:1ff:ffff::1",
        "2001:db8::1",
        "2620:4f:8000::1",
        "3fff:fff::1",
        "4000::1",
        "5f00::1",
        "fd00:ec2::254",
        "ff0e::1",
    ],
)
def test_an_inward_address_is_refused(address: str) -> None:
    assert not AddressPolicy().permits(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14",
        "192.0.1.1",
        "192.88.98.255",
        "223.255.255.255",
        "::ffff:93.184.215.14",
        "2001:200::1",
        "2606:2800:21f:cb07:6820:80da:af6b:8b2c",
        "3ffe:ffff::1",
    ],
)
def test_a_public_address_is_permitted(address: str) -> None:
    assert AddressPolicy().permits(ip_address(address))


def test_a_network_can_be_allowed_by_name() -> None:
    policy = AddressPolicy([ip_network("10.0.0.0/8")])

    assert policy.permits(ip_address("10.1.2.3"))
    assert policy.permits(ip_address("::ffff:10.1.2.3"))
    assert not policy.permits(ip_address("127.0.0.1"))


def test_one_bad_address_condemns_the_whole_name() -> None:
    with pytest.raises(AddressBlocked, match=r"'mixed.example'.*10\.0\.0\.1.*LORAYARD_WEBHOOK_ALLOW"):
        AddressPolicy().check("mixed.example", ["93.184.215.14", "10.0.0.1"])


def test_one_address_is_an_address_of_ipv4_or_a_site_of_ipv6() -> None:
    assert address_group("::ffff:192.0.2.1") == address_group("192.0.2.1") != address_group("192.0.2.2")
    assert address_group("2606:2800:21f::1") == address_group("2606:2800:21f:ffff::2")
    assert address_group("2606:2800:21f::1") != address_group("2606:2800:220::1")
