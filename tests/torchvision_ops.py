"""Makes ``import torchvision`` work where its C++ operators do not load; import this first.

torchvision comes in one build a torch build, and no registry that these tests may use offers one for
the CPU build of torch: its compiled operators then fail to load, and with them its import, because it
attaches to two of them by name. So this declares those two, ``nms`` and ``qnms``, with no code behind
them. They are a stand-in, not an implementation: calling one raises. They suppress overlapping boxes
in detection models, and no transform uses them. Where the real operators load, nothing is declared.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

__all__ = ["operators"]


def _load_or_declare() -> torch.library.Library | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    for compiled in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))
        except OSError:
            continue
        return None
    declared = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return declared


operators = _load_or_declare()  # a declaration lasts as long as the object that made it
