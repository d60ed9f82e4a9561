"""The URLs of plain streams: which side binds, what they become for ZeroMQ, and what is refused."""

from __future__ import annotations

import pytest

from shardfeed_wire.errors import EndpointError
from shardfeed_wire.plain import expand_plain, parse_plain


@pytest.mark.parametrize(
    ("scheme", "pattern", "binds", "sends"),
    [
        ("zpush", "push", False, True),
        ("zpull", "pull", True, False),
        ("zpub", "pub", True, True),
        ("zsub", "sub", False, False),
        ("zrpush", "push", True, True),
        ("zrpull", "pull", False, False),
        ("zrpub", "pub", False, True),
        ("zrsub", "sub", True, False),
    ],
)
def test_each_scheme_binds_or_connects_as_tensorcoms_table_says(
    scheme: str, pattern: str, binds: bool, sends: bool
) -> None:
    endpoint = parse_plain(f"{scheme}://10.0.0.1:7890", sends=sends)
    assert (endpoint.pattern, endpoint.binds, endpoint.sends) == (pattern, binds, sends)
    assert endpoint.address == "tcp://10.0.0.1:7890"
    with pytest.raises(EndpointError, match=rf"'{scheme}://10.0.0.1:7890' {'sends' if sends else 'receives'}"):
        parse_plain(f"{scheme}://10.0.0.1:7890", sends=not sends)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("zpush+tcp://data-0:7890", "tcp://data-0:7890"),
        ("zpush+ipc:///tmp/feed", "ipc:///tmp/feed"),
        ("zpush+ipc://mypath", "ipc://mypath"),  # as Tensorcom's README writes it: below the current folder
        ("zpush://[::1]:7890", "tcp://[::1]:7890"),
    ],
)
def test_what_carries_a_stream_stands_behind_a_plus(url: str, address: str) -> None:
    assert parse_plain(url, sends=True).address == address


def test_over_sctp_both_sides_write_one_url_and_the_receiver_binds() -> None:
    url = "sctp://10.0.0.1,10.1.0.1:7891"
    sender, receiver = parse_plain(url, sends=True), parse_plain(url, sends=False)
    assert (sender.pattern, sender.binds, sender.is_exposed) == ("push", False, False)
    assert (receiver.pattern, receiver.binds, receiver.is_exposed) == ("pull", True, True)
    assert sender.address == receiver.address == url
    assert not parse_plain("sctp://127.0.0.1,127.0.0.2:7891", sends=False).is_exposed
    with pytest.raises(EndpointError, match=r"sctp://data-0.*needs a host and a port"):
        parse_plain("sctp://data-0", sends=True)
    with pytest.raises(EndpointError, match="either pushed to one receiver or published to all"):
        expand_plain([url, "zpub://127.0.0.1:2"], sends=True)


@pytest.mark.parametrize(
    "url",
    ["tcp://127.0.0.1:7890", "zpush:127.0.0.1", "zpush+udp://127.0.0.1:1", "zpush+ipc://", "zpush://", "push://a:1"],
)
def test_what_is_no_plain_stream_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(EndpointError, match=r"no plain stream; write for example zpush://127\.0\.0\.1:7890"):
        parse_plain(url, sends=True)


def test_a_missing_port_is_named_with_the_whole_url() -> None:
    with pytest.raises(EndpointError, match=r"zsub://data-0.*needs a host and a port"):
        parse_plain("zsub://data-0", sends=False)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [
        ("zrpush://0.0.0.0:7890", True),
        ("zpub://*:7890", True),
        ("zpub://127.0.0.1:7890", False),
        ("zpub+ipc:///tmp/feed", False),
        ("zpush://10.0.0.1:7890", False),  # it connects
    ],
)
def test_only_what_binds_where_other_machines_reach_is_exposed(url: str, exposed: bool) -> None:
    assert parse_plain(url, sends=True).is_exposed is exposed


def test_braces_name_several_of_one_pattern() -> None:
    assert [one.address for one in expand_plain("zsub://127.0.0.1:789{0..2}", sends=False)] == [
        f"tcp://127.0.0.1:{port}" for port in (7890, 7891, 7892)
    ]
    assert len(expand_plain(["zpush://a:1", "zrpush://127.0.0.1:2"], sends=True)) == 2
    with pytest.raises(EndpointError, match="either pushed to one receiver or published to all"):
        expand_plain(["zpush://a:1", "zpub://127.0.0.1:2"], sends=True)
