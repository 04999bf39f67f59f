"""Pickled checkpoints, which are programs: only `process.py` reads one, and `convert.py` starts it as a process of its own."""
