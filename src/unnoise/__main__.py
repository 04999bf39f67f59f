"""`python -m unnoise` is the command `unnoise`."""

from __future__ import annotations

from unnoise.cli import main

if __name__ == "__main__":
    main()
