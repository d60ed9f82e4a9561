"""A skip is honest: it says what is missing, and fails where that was demanded."""

import pytest

from tests.requirements import require


def test_what_is_there_lets_the_test_go_on() -> None:
    require("gpu", True, "never said")


def test_what_is_missing_skips_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARDFEED_REQUIRE", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"\[guest\] no kernel"):
        require("guest", False, "no kernel")


@pytest.mark.parametrize("demanded", ["all", "guest", "peers, guest"])
def test_what_is_missing_fails_where_it_is_demanded(monkeypatch: pytest.MonkeyPatch, demanded: str) -> None:
    monkeypatch.setenv("SHARDFEED_REQUIRE", demanded)
    with pytest.raises(pytest.fail.Exception, match="demands guest, but: no kernel"):
        require("guest", False, "no kernel")


@pytest.mark.parametrize("demanded", ["", "all", "guest"])
def test_hardware_is_demanded_by_its_own_name_only(monkeypatch: pytest.MonkeyPatch, demanded: str) -> None:
    monkeypatch.setenv("SHARDFEED_REQUIRE", demanded)
    with pytest.raises(pytest.skip.Exception):
        require("gpu", False, "none")


def test_an_unknown_name_is_an_error_that_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDFEED_REQUIRE", "gest")
    with pytest.raises(pytest.UsageError, match=r"gest;.*guest"):
        require("guest", False, "no kernel")
