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
    leaves it. Where the name is a link's, the file appears where that leads. A device or a pipe is
    written to as it is, and stays what it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the temporary file; ``stream`` writes to it. Blocks for a pipe that nobody reads.

        :raises OSError: it cannot be made; the error names ``path``.
        """
        self.path = Path(path)
        self._temporary: Path | None = None
        try:
            if self.path.exists() and not self.path.is_file():
                self.stream = self.path.open("wb")
                return
            self._target = Path(os.path.realpath(self.path))
            handle, name = tempfile.mkstemp(
                dir=self._target.parent, prefix=f".{self._target.name}.", suffix=".unfinished"
            )
        except OSError as error:
            # What the temporary file would be called helps nobody.
            raise OSError(error.errno, error.strerror, str(self.path)) from error
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
            if self._temporary is not None:
                self._temporary.replace(self._target)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Close the file and remove it. Does nothing the second time, nor after ``commit``."""
        with suppress(OSError):
            # The disk may be full; the file goes away just below.
            self.stream.close()
        if self._temporary is not None:
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
