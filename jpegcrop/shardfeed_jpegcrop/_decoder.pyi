from typing_extensions import Buffer

LIBJPEG_TURBO: str
"""The version of libjpeg-turbo that this was built with."""

def decode_part(data: Buffer, into: Buffer, top: int, left: int, /) -> None:
    """Decode the rows from ``top`` and the columns from ``left`` that fill ``into``.

    :param data: a JPEG's bytes, contiguous. All of it is read, and the interpreter is free meanwhile.
    :param into: writable, contiguous memory of shape (height, width, 3), for RGB, or (height, width, 1), for the luma
        of a gray picture, of one byte each.
    :raises ValueError: with libjpeg's words: the file is damaged, anywhere, be it so little that libjpeg would only
        warn; or it is of a kind that is not decoded in part (progressive, arithmetic, CMYK, unusual sampling); or the
        part does not lie inside. What ``into`` then holds is unknown.
    """
