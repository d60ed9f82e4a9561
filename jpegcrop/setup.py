"""The one extension module; all else stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "shardfeed_jpegcrop._decoder",
            ["shardfeed_jpegcrop/_decoder.c"],
            libraries=["jpeg"],
            # One wheel for every Python from 3.11 on.
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
