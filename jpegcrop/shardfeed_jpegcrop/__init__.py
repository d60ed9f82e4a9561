"""A part of a JPEG, with the pixels, and the errors, of decoding the whole; the rest is not made into pixels."""

from shardfeed_jpegcrop._decoder import LIBJPEG_TURBO, decode_part

__all__ = ["LIBJPEG_TURBO", "decode_part"]
