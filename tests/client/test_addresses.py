"""Several addresses of one SCTP server stay one server, whatever names they have."""

from __future__ import annotations

import asyncio

from shardfeed.addresses import resolve


def test_several_addresses_of_one_server_are_one_url() -> None:
    assert asyncio.run(resolve(["sctp://10.0.0.1,[fd00::1]:7881"])) == ["sctp://10.0.0.1,[fd00::1]:7881"]


def test_names_among_them_are_looked_up_one_address_each() -> None:
    (url,) = asyncio.run(resolve(["sctp://localhost,10.0.0.1:7881"]))
    assert url in ("sctp://127.0.0.1,10.0.0.1:7881", "sctp://[::1],10.0.0.1:7881")
