"""Threads that wait for work sleep, however busy the machine is.

torch's CPU build runs its loops on libgomp's threads. A libgomp thread that has nothing to do spins for a while before it sleeps, and where
other programs want the processors, it spins in the place of the thread that it waits for: on two processors with other work, a training run
on two threads took 17 times as long as on one. libgomp spins only shortly once it manages more threads than there are processors
(``GOMP_SPINCOUNT`` in its manual). :func:`sleep_while_waiting` brings it there: one further team of threads, which does nothing and sleeps.
Results don't depend on it.
"""

from __future__ import annotations

import ctypes
import glob
import os
import threading
from pathlib import Path

import torch

_LOCK = threading.Lock()
_KEEPER: threading.Thread | None = None
_PROCESS = 0  # whose keeper it is: a forked process has none


def sleep_while_waiting() -> bool:
    """From now on libgomp's waiting threads sleep, in this process. Returns whether that could be done: it can't where torch runs on
    another library of threads, and needn't where the user has chosen (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``)."""
    global _KEEPER, _PROCESS
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return False
    if _KEEPER is not None and os.getpid() == _PROCESS:
        return True  # without the lock, which an interrupt at its end could leave taken
    with _LOCK:
        if _KEEPER is None or os.getpid() != _PROCESS:
            library = _libgomp()
            if library is None:
                return False
            ready = threading.Event()
            _KEEPER, _PROCESS = threading.Thread(target=_keep, args=(library, ready), name="fastforget-idle-team", daemon=True), os.getpid()
            _KEEPER.start()
            ready.wait()
    return True


def _keep(library: ctypes.CDLL, ready: threading.Event) -> None:
    """Starts a team of more threads than there are processors, and keeps it by staying alive."""
    count = (os.cpu_count() or 1) + 1
    # the team's work is a function of libgomp's own that does nothing: its threads must not enter Python
    library.GOMP_parallel(ctypes.cast(library.omp_get_thread_num, ctypes.c_void_p), None, ctypes.c_uint(count), ctypes.c_uint(0))
    ready.set()
    threading.Event().wait()


def _libgomp() -> ctypes.CDLL | None:
    """The libgomp that torch has loaded: a second one has threads of its own."""
    folder = Path(torch.__file__).parent
    for path in (*glob.glob(str(folder / "lib" / "libgomp*.so*")), *glob.glob(str(folder.parent / "torch.libs" / "libgomp*.so*"))):
        try:
            library = ctypes.CDLL(path, mode=getattr(os, "RTLD_NOLOAD", 4) | ctypes.RTLD_GLOBAL)
            if hasattr(library, "GOMP_parallel") and hasattr(library, "omp_get_thread_num"):
                return library
        except OSError:
            continue
    return None
