"""A program that ends with who started it: `python -m luthier.engines.leash PROGRAM ARGUMENT ...`.

A native program does not notice that its asker was killed, and would hold its memory for ever. This process stands
between the two and ends the program when standard input ends. Knows nothing of the program but its exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_SECONDS_TO_END = 3.0


def main(words: Sequence[str]) -> int:
    """Run a program until it ends, or standard input does. Returns its exit code, 128 + N after signal N."""
    # A handler, not SIG_IGN, which the program would inherit. Who sends SIGTERM has closed standard input before.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.signal(signal.SIGINT, lambda number, frame: None)
    program = subprocess.Popen(list(words), stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, args=(program,), daemon=True).start()
    code = program.wait()
    return code if code >= 0 else 128 - code


def _end_with_input(program: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock would be held while the interpreter ends
        pass
    program.terminate()
    try:
        program.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        program.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
