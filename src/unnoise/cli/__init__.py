"""The command `unnoise`. `main` is its one way out: whatever goes wrong becomes one line on stderr and an exit code.

| exit | when |
| 0    | done |
| 1    | the machine failed: disk full, memory, or a defect of ours; or a line of --batch could not be made |
| 2    | what was asked cannot be done: the line says what was got, what was expected, what to do |
| 130  | stopped with Ctrl-C |

UNNOISE_DEBUG=1 shows the traceback behind the line. Nothing here or at the top of a verb's file imports torch.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. The console script and `python -m unnoise` end here."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a prompt that the terminal's encoding lacks is no reason to fail
    try:
        from unnoise.cli.app import app

        code = app(args=arguments, prog_name="unnoise", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("UNNOISE_DEBUG") == "1":
            raise
        from unnoise.cli.refusals import refusal

        line, code = refusal(error)
        print(line, file=sys.stderr)
    else:
        if code == 130:  # typer turns Ctrl-C into this code and says nothing
            print("stopped", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)
