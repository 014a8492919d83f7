"""``python -m tests.field_cases [word]``: every case (whose name has the word), expected and got; exit status 1 if any differ."""

from __future__ import annotations

import sys

from . import CASES


def main(words: list[str]) -> int:
    chosen = [case for case in CASES if all(word in case.name for word in words)]
    wide = max((len(case.name) for case in chosen), default=0)
    wrong = 0
    for case in chosen:
        got = case.got()
        wrong += got != case.expected
        print(f"{'  ' if got == case.expected else '! '}{case.name:{wide}}  expected {case.expected!s:32}  got {got}", flush=True)
    print(f"{len(chosen)} cases, {wrong} of them not as expected")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
