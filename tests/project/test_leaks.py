"""The leak check itself: each kind of thing left over is named, and what goes away in time is not."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

import tests.leaks
from tests.leaks import left_over, resources


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.leaks, "SETTLE_SECONDS", 0.1)


def test_nothing_is_left_over_where_nothing_was_done(temporary_folder: Path) -> None:
    assert left_over(resources(temporary_folder), temporary_folder) == []


def test_a_thread_left_running_is_named(temporary_folder: Path) -> None:
    before, stop = resources(temporary_folder), threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    (found,) = left_over(before, temporary_folder)
    stop.set()
    thread.join()
    assert found.startswith("thread forgotten")


def test_a_descriptor_left_open_is_named(temporary_folder: Path) -> None:
    before = resources(temporary_folder)
    descriptor = os.open("/dev/null", os.O_RDONLY)
    (found,) = left_over(before, temporary_folder)
    os.close(descriptor)
    assert found == f"descriptor {descriptor} -> /dev/null"


def test_a_child_left_running_or_not_waited_for_is_named(temporary_folder: Path) -> None:
    before = resources(temporary_folder)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    running = [name for name in left_over(before, temporary_folder) if name.startswith("process")]
    child.kill()
    while not any("not waited for" in name for name in left_over(before, temporary_folder)):
        time.sleep(0.01)
    child.communicate()
    assert running == [f"process {child.pid} {sys.executable} -c input()"]


def test_a_file_left_in_the_temporary_folder_is_named(temporary_folder: Path) -> None:
    before, path = resources(temporary_folder), temporary_folder / "forgotten.sock"
    path.touch()
    found = left_over(before, temporary_folder)
    path.unlink()
    assert found == [f"file {path}"]


def test_a_context_left_open_is_named_by_its_threads(temporary_folder: Path) -> None:
    before = resources(temporary_folder)
    context = zmq.Context()
    context.socket(zmq.PAIR).close()
    found = left_over(before, temporary_folder)
    context.term()
    assert any(name.startswith("thread ZMQ") for name in found)
    assert left_over(before, temporary_folder) == []


def test_what_goes_away_a_little_later_is_not_left_over(
    temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tests.leaks, "SETTLE_SECONDS", 5.0)
    before = resources(temporary_folder)
    threading.Thread(target=time.sleep, args=(0.1,)).start()
    assert left_over(before, temporary_folder) == []


@given(st.integers())
def test_properties_run_under_the_check(number: int) -> None:
    assert number == number + 0
