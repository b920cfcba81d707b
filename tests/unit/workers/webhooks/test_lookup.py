"""A URL is read once, as it is called; a host counts as the domain that somebody registered."""

from __future__ import annotations

import pytest

from workers.webhooks.lookup import UncallableUrl, read_url, registrable_domain


@pytest.mark.parametrize(
    "url",
    [
        "http://a..b/",
        f"http://{'a' * 70}.com/",
        f"http://{'a.' * 130}com/",
        "http://xn--/",
        "http://[v1.x]/",
        "ftp://example.com/",
        "http:///hook",
        "http://user@:80/",
        "http://example.com:99999/",
        "http://exa mple.com/",
        "http://a%2eb.com/",
        "http://[fe80::1%25eth0]/",
        "http://１２７.0.0.1/",
    ],
)
def test_a_url_that_can_never_be_called_is_refused_with_its_value(url: str) -> None:
    with pytest.raises(UncallableUrl) as refused:
        read_url(url)

    assert repr(url) in str(refused.value)


def test_a_url_is_read_as_it_is_called() -> None:
    target = read_url("http://good.example\\@WWW.Bücher.example.:8080/hook")

    assert (target.host, target.port) == ("www.xn--bcher-kva.example", 8080)
    assert target.domain == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("hooks.example.com", "example.com"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("one.github.io", "one.github.io"),
        ("github.io", "github.io"),
        ("localhost", "localhost"),
        ("job-1.receiver.internal", "receiver.internal"),
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_a_host_counts_as_its_registrable_domain_or_its_address(host: str, domain: str) -> None:
    assert registrable_domain(host) == domain
