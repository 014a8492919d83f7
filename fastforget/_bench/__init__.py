"""Lets a bare checkout run its benchmarks: they live in the repository's benchmarks folder.

A wheel has no such file: there the benchmarks themselves lie in this folder.
"""

from pathlib import Path

__path__.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
