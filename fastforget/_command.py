"""What the commands share: a parser and an end by error whose words from outside are fit for a terminal."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from ._text import visible


class Parser(argparse.ArgumentParser):
    """Argparse's parser; what it quotes of the command line stays on its line."""

    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def unusable(command: str, error: object) -> int:
    """Says on stderr why a command can't do its work; returns the exit status."""
    print(f"python -m fastforget {command}: {visible(error)}", file=sys.stderr)
    return 2
