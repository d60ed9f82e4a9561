"""What importing the packages brings with it, and what it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name + " must not be imported here")
sys.meta_path.insert(0, Refuse())
"""


def imported(module: str, without: list[str]) -> set[str]:
    """Import a module in a fresh process where some packages refuse to be imported; tell what is then loaded."""
    code = f"{BLOCKED.format(names=without)}\nimport {module}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["shardfeed", "shardfeed_wire"])
def test_client_and_wire_import_without_webdataset_and_the_servers_packages(module: str) -> None:
    imported(
        module, ["PIL", "rich", "shardfeed_cli", "shardfeed_server", "simplejpeg", "typer", "uvloop", "webdataset"]
    )


def test_the_command_says_what_it_can_do_without_importing_torch() -> None:
    assert "torch" not in imported("shardfeed_cli.main", ["torch"])
