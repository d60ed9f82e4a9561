"""torchvision's transforms run beside any build of torch."""

import tests.torchvision_ops  # noqa: F401 - first: torchvision cannot be imported without

# isort: split

import torch
from torchvision.transforms import v2


def test_transforms_run_without_the_compiled_operators() -> None:
    image = torch.arange(3 * 8 * 10, dtype=torch.uint8).reshape(3, 8, 10)
    assert torch.equal(v2.RandomHorizontalFlip(p=1.0)(image), image.flip(-1))
    assert v2.Resize((4, 5))(image).shape == (3, 4, 5)
