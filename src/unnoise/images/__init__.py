"""Pictures in and out: settings inside files, the mark of where a picture came from, contact sheets. Imports no torch."""

from __future__ import annotations

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # a file's ending: Pillow's name of the format
