"""Endpoints: URLs parse and write back, braces expand as a shell's do, and what is wrong is said with what to write."""

from __future__ import annotations

import contextlib
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_wire.endpoint import Endpoint, expand_braces, expand_endpoints, parse_endpoint
from shardfeed_wire.errors import ConfigError, EndpointError
from shardfeed_wire.transport import Limits, Network, schemes

hosts = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{2,5})?", fullmatch=True),
    st.sampled_from(["localhost", "*", "data_3"]),
)
network_endpoints = st.builds(
    Endpoint, scheme=st.sampled_from(["tcp", "sctp"]), host=hosts, port=st.integers(0, 65_535)
)
paths = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20).map("/".__add__)
ipc_endpoints = st.builds(Endpoint, scheme=st.just("ipc"), path=paths)


@given(network_endpoints | ipc_endpoints)
def test_an_endpoint_parses_back_from_what_it_writes(endpoint: Endpoint) -> None:
    assert parse_endpoint(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "is not a URL"),
        ("127.0.0.1:7880", "is not a URL"),
        ("tcp://", "is not a URL"),
        ("://host:1", "is not a URL"),
        ("tcp:127.0.0.1:7880", "is not a URL"),
        ("t cp://host:1", "is not a URL"),
        ("tcp://host", "needs a host and a port"),
        ("tcp://:7880", "needs a host and a port"),
        ("tcp://host:", "needs a host and a port"),
        ("tcp://host:http", "needs a host and a port"),
        ("tcp://host:65536", "needs a host and a port"),
        ("tcp://host:-1", "needs a host and a port"),
        ("tcp://host:٣", "needs a host and a port"),
        ("tcp://host:" + "9" * 5000, "needs a host and a port"),
        ("tcp://::1:7880", "brackets"),
        ("ipc://feed", "three slashes"),
    ],
)
def test_what_is_no_endpoint_is_said_with_what_to_write(url: str, says: str) -> None:
    with pytest.raises(EndpointError, match=says) as caught:
        parse_endpoint(url)
    assert repr(url) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_an_endpoint_or_an_endpoint_error(url: str) -> None:
    with contextlib.suppress(EndpointError):
        parse_endpoint(url)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://127.9.9.9:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("ipc:///tmp/feed", True),
        ("tcp://0.0.0.0:1", False),
        ("tcp://*:1", False),
        ("tcp://10.0.0.1:1", False),
        ("tcp://[::]:1", False),
        ("tcp://data-0:1", False),
        ("tcp://localhost.example.com:1", False),
    ],
)
def test_only_what_this_machine_alone_reaches_is_loopback(url: str, loopback: bool) -> None:
    assert parse_endpoint(url).is_loopback is loopback


# -------------------------------------------------------------------------------------------- braces


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain", ["plain"]),
        ("", [""]),
        ("train-{000000..000002}.tar", ["train-000000.tar", "train-000001.tar", "train-000002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..9..4}", ["0", "4", "8"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("{a,}x", ["ax", "x"]),
        ("{x{1..2},y}", ["x1", "x2", "y"]),
        ("{one}", ["{one}"]),
        ("{}", ["{}"]),
        ("{one}-{1..2}", ["{one}-1", "{one}-2"]),
    ],
)
def test_braces_expand(text: str, expanded: list[str]) -> None:
    assert expand_braces(text) == expanded


# Three of them, one behind the other, are at most 8,000 names.
ranges = st.builds(
    "{{{}..{}}}".format,
    st.from_regex(r"-?0{0,2}[0-9]", fullmatch=True),
    st.from_regex(r"-?0{0,2}[0-9]", fullmatch=True),
)
long_range = st.builds(
    "{{{}..{}}}".format,
    st.from_regex(r"-?[0-9]{1,3}", fullmatch=True),
    st.from_regex(r"-?[0-9]{1,3}", fullmatch=True),
)
lists = st.lists(st.from_regex(r"[a-z0-9.]{1,3}", fullmatch=True), min_size=2, max_size=4).map(
    lambda items: "{" + ",".join(items) + "}"
)
words = st.from_regex(r"[a-z0-9_]{0,4}", fullmatch=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="[bash] there is none to compare with")
def test_braces_expand_as_the_shell_expands_them() -> None:
    examples: list[str] = []

    @given(long_range | st.lists(words | ranges | lists, min_size=1, max_size=3).map("".join))
    def collect(text: str) -> None:
        if text:
            examples.append(text)

    collect()
    script = "".join(f"printf '%s ' {text}; echo\n" for text in examples)
    lines = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True).stdout.splitlines()
    for text, line in zip(examples, lines, strict=True):
        assert expand_braces(text) == line.split(), text


@given(words | ranges | lists, words | ranges | lists)
def test_braces_beside_each_other_give_every_pair(left: str, right: str) -> None:
    if len(expand_braces(left)) * len(expand_braces(right)) > 10_000:
        return
    together = [a + b for a in expand_braces(left) for b in expand_braces(right)]
    assert expand_braces(left + right) == together


@pytest.mark.parametrize(
    "text", ["{1..3", "1..3}", "a{b{1,2}", "{0..9999999999}", "{0..999}{0..999}{0..999}", "{a}" * 2000]
)
def test_a_brace_that_does_not_close_and_too_many_names_are_configuration_errors(text: str) -> None:
    with pytest.raises(ConfigError):
        expand_braces(text)


@given(st.text(st.sampled_from("{}.,0123ab-"), max_size=12))
def test_any_text_expands_or_is_a_configuration_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert expand_braces(text)


# ------------------------------------------------------------------------------- several endpoints


def test_several_endpoints_are_expanded_in_order_and_once_each() -> None:
    assert expand_endpoints(["tcp://b:{1..2}", " tcp://a:1 ", "tcp://b:1"]) == ["tcp://b:1", "tcp://b:2", "tcp://a:1"]
    assert expand_endpoints("tcp://a:{1,2}") == ["tcp://a:1", "tcp://a:2"]


def test_no_endpoint_at_all_is_an_error() -> None:
    with pytest.raises(EndpointError, match="no endpoint was given"):
        expand_endpoints([])


def test_a_scheme_that_no_transport_serves_is_said_with_those_there_are() -> None:
    assert {"ipc", "tcp"} <= set(schemes())
    with pytest.raises(EndpointError, match=r"no transport for 'carrier'; there are: .*ipc.*tcp"):
        Network().listen("carrier://pigeon:1", Limits(frame_bytes=1))


def test_several_addresses_of_one_server_are_one_sctp_endpoint() -> None:
    endpoint = parse_endpoint("sctp://10.0.0.1,[fd00::1]:7881")
    assert endpoint.hosts == ("10.0.0.1", "fd00::1")
    assert str(endpoint) == "sctp://10.0.0.1,[fd00::1]:7881"
    assert not endpoint.is_loopback


def test_several_addresses_are_loopback_only_if_all_are() -> None:
    assert parse_endpoint("sctp://127.0.0.1,[::1]:7881").is_loopback
    assert not parse_endpoint("sctp://127.0.0.1,10.0.0.1:7881").is_loopback


@pytest.mark.parametrize("url", ["tcp://10.0.0.1,10.1.0.1:7880", "sctp://10.0.0.1,:7881", "sctp://,:7881"])
def test_several_addresses_are_sctp_s_alone_and_none_is_empty(url: str) -> None:
    with pytest.raises(EndpointError, match="only sctp:// takes several addresses"):
        parse_endpoint(url)
