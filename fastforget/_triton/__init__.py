"""Lets a bare checkout import its Triton kernels: they live in the repository's triton_kernels folder.

A wheel has no such file: there the kernels themselves lie in this folder.
"""

from pathlib import Path

__path__.append(str(Path(__file__).resolve().parents[2] / "triton_kernels"))
