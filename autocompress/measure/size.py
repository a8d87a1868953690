"""How many bytes an artifact is: on disk, and as a download."""

from __future__ import annotations

import zlib


def compressed_bytes(artifact: bytes) -> int:
    """Bytes after zlib at level 9: about what a compressed download weighs."""
    return len(zlib.compress(artifact, 9))
