"""Whether PyTorch is installed, and new enough: in words, where Python would end in a bare ImportError."""

from __future__ import annotations

import sys

NEEDED = (2, 10)
KERNELS = "pip install ninja 'setuptools>=77' && pip install --no-build-isolation --no-deps --force-reinstall ."


def _why_not() -> str | None:
    try:
        import torch
    except ImportError as error:
        return (
            f"fastforget needs PyTorch 2.10 or newer, which can't be imported here ({error}). Install it by `pip install torch`, or as "
            f"pytorch.org says for your GPU. Then, for the compiled kernels, which are built beside torch, in the source folder: {KERNELS}"
        )
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < NEEDED:
        return f"fastforget needs PyTorch 2.10 or newer; found {torch.__version__}. Upgrade it: pip install --upgrade torch"
    return None


_reason = _why_not()
if _reason is not None:
    # "python -m fastforget …" imports the package before it runs anything, with "-m" for the program's name
    if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv) - 1 :][:2] == ["-m", "fastforget"]:
        print(f"python -m fastforget: {_reason}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(_reason, name="torch")
