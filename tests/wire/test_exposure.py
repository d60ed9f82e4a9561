"""Who may listen where other machines reach: one rule, and what its errors say."""

from __future__ import annotations

import pytest

from shardfeed_wire.errors import ConfigError
from shardfeed_wire.exposure import check_exposure


def test_loopback_insecure_and_curve_over_zeromq_are_allowed() -> None:
    check_exposure("bind", "tcp://127.0.0.1:1", loopback=True, insecure=False)
    check_exposure("bind", "sctp://0.0.0.0:1", loopback=False, insecure=True)
    check_exposure("bind", "tcp://0.0.0.0:1", loopback=False, insecure=False, curve=True)


def test_without_curve_the_error_names_the_place_and_both_ways_out() -> None:
    with pytest.raises(
        ConfigError, match=r"^bind: 'tcp://0\.0\.0\.0:1' .*`shardfeed keygen`.*`--curve FILE`.*`--insec"
    ):
        check_exposure("bind", "tcp://0.0.0.0:1", loopback=False, insecure=False)


@pytest.mark.parametrize("url", ["sctp://0.0.0.0:1", "http://0.0.0.0:1", "zpush://0.0.0.0:1"])
def test_curve_does_not_help_what_it_does_not_guard(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^outputs: .*has no encryption.*`--insecure`"):
        check_exposure("outputs", url, loopback=False, insecure=False, curve=True)
