"""The command line: ``python -m fastforget {demo,verify,compare,info,score,bench,experiment}``. Each command is imported when it is asked
for."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

USAGE = """usage: python -m fastforget COMMAND [options]

  demo        train a small network on real images, forget a class, audit it, write report.html
  verify      check a receipt: its own hash, the weights, the forget set, and its figures by the rule
  compare     several receipts side by side on one page, where they share an original model and its data
  info        what is built and loaded here, and what serves each op, with a reason for every "no"
  score       membership attacks from saved logits of any framework, with or without shadow models
  experiment  every method on real data sets and scenarios, beside retraining; resumable
  bench       time the ops against plain PyTorch and the memory's limit

python -m fastforget COMMAND --help shows a command's options.
"""
MODULES = {
    "demo": "demo.run",
    "verify": "auditing.proof.verify",
    "compare": "auditing.proof.compare",
    "info": "_info",
    "score": "auditing.arrays.score",
    "bench": "_bench.bench",
    "experiment": "_bench.experiment",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        from ._version import __version__

        print(f"fastforget {__version__}")
        return 0
    if command in MODULES:
        return importlib.import_module(f".{MODULES[command]}", __package__).main(rest)
    given = f"unknown command {command!r}" if command else "no command"
    print(f"{USAGE}\npython -m fastforget: {given}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without "…" gets an escape, not a traceback
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
