"""Numbers in messages."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """A number of things in words. thing: one of them; several get an s.

    >>> counted(1, "segment"), counted(0, "segment"), counted(3, "TPU")
    ('1 segment', '0 segments', '3 TPUs')
    """
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
