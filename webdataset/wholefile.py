"""Files that appear under their name when they are whole, or never."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["WholeFile"]


class WholeFile:
    """A file being written under another name beside its own.

    As a context manager it is committed at the end of the block, and discarded when an exception
    leaves it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the temporary file; ``stream`` writes to it.

        :raises OSError: it cannot be made; the error names ``path``'s folder.
        """
        self.path = Path(path)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".unfinished")
        os.close(handle)
        self._temporary = Path(name)
        # Temporary files are private; this one is to be read by whoever may read its folder.
        self._temporary.chmod(0o666 & ~_umask())
        self.stream = self._temporary.open("wb")

    def commit(self) -> None:
        """Close the file and give it its name, in the place of a file that had it.

        :raises OSError: it cannot be written or renamed; then it is discarded.
        """
        try:
            self.stream.close()
            self._temporary.replace(self.path)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Close the file and remove it. Does nothing the second time, nor after ``commit``."""
        with suppress(OSError):
            # The disk may be full; the file goes away just below.
            self.stream.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if exc_type is None:
            self.commit()
        else:
            self.discard()


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
