"""Tensors as PNG data URIs, with zlib alone."""

from __future__ import annotations

import base64
import struct
import zlib

import torch
from torch import Tensor


def png(image: Tensor) -> bytes:
    """``image`` [height, width] or [3, height, width], uint8, as a PNG file."""
    if image.dtype != torch.uint8 or not (image.dim() == 2 or (image.dim() == 3 and image.shape[0] == 3)):
        raise ValueError(f"image: got {tuple(image.shape)} {image.dtype}; accepted is uint8 [height, width] or [3, height, width]")
    rows = image.unsqueeze(-1) if image.dim() == 2 else image.permute(1, 2, 0)
    height, width, channels = rows.shape
    # Every line starts with its filter type, 0 = as it is.
    raw = b"".join(b"\0" + bytes(line.contiguous().flatten().tolist()) for line in rows.cpu())
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_uri(image: Tensor) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def stretched(images: Tensor) -> Tensor:
    """Float images [n, channels, height, width] to uint8: each image's own range becomes 0 to 255; NaN
    becomes black."""
    flat = images.detach().float().cpu().nan_to_num(0.0, 0.0, 0.0).flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scaled = (flat - low) / (high - low).clamp(min=1e-12) * 255
    return scaled.round().to(torch.uint8).view(images.shape)


def as_pictures(images: Tensor, argument: str = "noise") -> list[str]:
    """Data URIs of float images; one channel is grey, three are colour, any other number shows its mean."""
    if images.dim() != 4:
        raise ValueError(f"{argument}: got shape {tuple(images.shape)}; accepted is [n, channels, height, width]")
    if images.shape[1] not in (1, 3):
        images = images.float().mean(1, keepdim=True)
    return [data_uri(image[0] if image.shape[0] == 1 else image) for image in stretched(images)]
