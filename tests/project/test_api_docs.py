"""The pages of the Python API are made from the docstrings without a warning, and hold every documented name."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from types import FunctionType

import pytest

pytestmark = [pytest.mark.timeout(120), pytest.mark.xdist_group("api-docs")]  # built once, not by every process

ROOT = Path(__file__).parents[2]
MODULES = [
    "shardfeed",
    "shardfeed_server.config",
    "shardfeed_wire.errors",
    "shardfeed_wire.messages",
    "shardfeed_wire.tenbin",
    "shardfeed_wire.transport",
    "webdataset",
    "webdataset.dataset",
    "webdataset.decode",
    "webdataset.encode",
    "webdataset.gopen",
    "webdataset.images",
    "webdataset.indexing",
    "webdataset.manifest",
    "webdataset.samples",
    "webdataset.shards",
    "webdataset.tenbin",
    "webdataset.writer",
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the pages."""
    folder = tmp_path_factory.mktemp("api")
    done = subprocess.run([ROOT / "scripts/docs", folder], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder


def test_the_pages_are_built_without_a_warning(pages: Path) -> None:
    made = {path.relative_to(pages).with_suffix("").as_posix().replace("/", ".") for path in pages.rglob("*.html")}
    assert made == {"index", *MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_page_holds_every_public_class_and_function_with_its_text(pages: Path, module: str) -> None:
    text = (pages / f"{module.replace('.', '/')}.html").read_text(encoding="utf-8")
    imported = importlib.import_module(module)
    for name in imported.__all__:
        if isinstance(getattr(imported, name), type | FunctionType):
            assert f'id="{name}"' in text, f"{module}.{name} is not on its page"


def test_the_table_of_modules_names_each() -> None:
    table = (ROOT / "docs/api/README.md").read_text(encoding="utf-8")
    for module in MODULES:
        package, _, last = module.partition(".")
        assert f"`{module}`" in table or (f"`.{last}`" in table and f"`{package}." in table) or module == "webdataset"
