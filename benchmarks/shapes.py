"""Parameter shapes of the networks whose lists are benchmarked, by their construction rules."""

from __future__ import annotations

Shape = tuple[int, ...]


def _convolution(shapes: list[Shape], inputs: int, outputs: int, size: int) -> None:
    shapes += [
        (outputs, inputs, size, size),
        (outputs,),
        (outputs,),
    ]  # weight, then batch norm's weight and bias


def resnet(blocks: tuple[int, ...], bottleneck: bool, classes: int, stem: int) -> list[Shape]:
    """A residual network's parameters in order (He et al., CVPR'16): 3x3 basic blocks, or 1x1-3x3-1x1
    bottlenecks of expansion 4."""
    shapes: list[Shape] = []
    _convolution(shapes, 3, 64, stem)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(count):
            if bottleneck:
                _convolution(shapes, channels, width, 1)
                _convolution(shapes, width, width, 3)
                _convolution(shapes, width, outputs, 1)
            else:
                _convolution(shapes, channels, width, 3)
                _convolution(shapes, width, outputs, 3)
            if block == 0 and channels != outputs:
                _convolution(shapes, channels, outputs, 1)
            channels = outputs
    return [*shapes, (classes, channels), (classes,)]


RESNET18 = resnet((2, 2, 2, 2), False, classes=10, stem=3)  # at 32x32: 62 tensors, 11.2 million
RESNET50 = resnet((3, 4, 6, 3), True, classes=1000, stem=7)  # at 224x224: 161 tensors, 25.6 million

SMALL_NET: list[Shape] = [(32, 3, 3, 3), (32,), (64, 32, 3, 3), (64,), (128, 1600), (128,), (10, 128), (10,)]  # two convolutions and layers
LISTS = {"small net": SMALL_NET, "ResNet-18": RESNET18}


def numel(shapes: list[Shape]) -> int:
    total = 0
    for shape in shapes:
        count = 1
        for n in shape:
            count *= n
        total += count
    return total
