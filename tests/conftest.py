"""What every test of the suite gets: a clean machine before and after, real photographs, and honest skips."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.leaks import left_over, resources
from tests.photographs import Photograph, Photographs, write_shards
from tests.requirements import is_required

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for its newest version

hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")


# A shell that starts this in the background has Ctrl-C ignored, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# ---------------------------------------------------------------------------------------- left over


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This process's own folder for temporary files, short enough for the names of sockets, empty after every test."""
    tmp_path_factory.getbasetemp()  # settled before TMPDIR changes
    folder = Path(tempfile.mkdtemp(prefix="sf-"))
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    os.environ["TMPDIR"] = str(folder)
    yield folder
    tempfile.tempdir = before
    os.environ.pop("TMPDIR")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache folder out of the tests, and the tests out of it; forget the ranks of a cluster's job."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache / "torchinductor"))  # torch makes it when it is imported
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def process_wide_context() -> None:
    """Start the threads that pyzmq keeps, so that no test seems to leave them.

    Those of its process-wide context, and the one that frees the frames which were sent without a copy.
    """
    import zmq

    context = zmq.Context.instance()
    with context.socket(zmq.PUSH) as push, context.socket(zmq.PULL) as pull:
        push.connect(f"tcp://127.0.0.1:{pull.bind_to_random_port('tcp://127.0.0.1')}")
        push.send(bytes(1 << 20), copy=False)
        pull.recv()


@pytest.fixture(autouse=True)
def nothing_left(temporary_folder: Path) -> Iterator[None]:
    """Fail a test that leaves a thread, descriptor, child process or temporary file behind."""
    before = resources(temporary_folder)
    yield
    if found := left_over(before, temporary_folder):
        pytest.fail("left over after the test:\n  " + "\n  ".join(found), pytrace=False)


# ------------------------------------------------------------------------------------ real pictures


@pytest.fixture(scope="session")
def photographs(pytestconfig: pytest.Config) -> Photographs:
    """2,000 JPEGs of 500 x 375 pixels, made as they are asked for: ``photographs[:200]`` lists (key, jpeg, label)."""
    assert pytestconfig.cache is not None
    return Photographs(pytestconfig.cache.mkdir("photographs-1"), 2000)


@pytest.fixture(scope="session")
def photographs_of(pytestconfig: pytest.Config) -> Callable[[int, int], Photographs]:
    """``photographs_of(32, 24)``: 2,000 JPEGs of so many pixels.

    A server that need not resize them starts without torch, in a third of the time.
    """

    def smaller(width: int, height: int) -> Photographs:
        assert pytestconfig.cache is not None
        return Photographs(pytestconfig.cache.mkdir(f"photographs-{width}x{height}"), 2000, size=(width, height))

    return smaller


@pytest.fixture(scope="session")
def thumbnails(photographs_of: Callable[[int, int], Photographs]) -> Photographs:
    """2,000 JPEGs of 32 x 32 pixels."""
    return photographs_of(32, 32)


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., list[Path]]:
    """``shards(photographs[:200], count=4, name="train")`` writes photographs as jpg + cls; gives the paths."""

    def write(pictures: Iterable[Photograph], count: int = 4, name: str = "train") -> list[Path]:
        samples = [(key, {"jpg": jpeg, "cls": str(label).encode()}) for key, jpeg, label in pictures]
        return write_shards(tmp_path / "shards", samples, count, name)

    return write


# ------------------------------------------------------------------------------------ honest skips


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip that says no capability fails where all are demanded; ``require`` deals with those that do."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not _reason(report).startswith("[") and is_required(None):
        report.outcome = "failed"
        report.longrepr = f"SHARDFEED_REQUIRE demands everything, but this was skipped: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips itself."""
    report = yield
    if report.skipped and is_required(None):
        report.outcome = "failed"
        report.longrepr = f"SHARDFEED_REQUIRE demands everything, but this was skipped: {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Hand the skips and their reasons to scripts/test, which closes with them."""
    if not (path := os.environ.get("SHARDFEED_SKIPPED")):
        return
    tests: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        tests.setdefault(_reason(report), []).append(report.nodeid)
    with Path(path).open("a", encoding="utf-8") as file:
        for reason, names in tests.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            file.write(f"{reason}: {names[0]}{more}\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What a skip said of itself, on one line."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(reason.removeprefix("Skipped: ").split())
