"""Compiled segments, kept under a key made from the segment's bytes and name, the compiler, and its options.

An entry is a folder with the compiled file, the compiler's output, and a hash of each. It is written elsewhere and renamed,
so it appears whole. A damaged entry is removed and not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from balancer.processes.scratch import scratch, sweep

_LOG = logging.getLogger(__name__)
_FILE, _OUTPUT, _HASHES = "compiled.tflite", "output.txt", "sha256.json"
_PARTIAL = ".new-"


class Entry(NamedTuple):
    """data: the compiled file. output: what the compiler printed."""

    data: bytes
    output: str


def default_folder() -> Path:
    """`balancer` in the user's cache folder (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "balancer" / "compiled"


class Cache:
    """Entries in a folder, which is made with the first entry. Where it cannot be written, nothing is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Entry | None:
        """The entry of this key; None where there is none, or it is damaged."""
        folder = self.folder / key
        try:
            data, output = (folder / _FILE).read_bytes(), (folder / _OUTPUT).read_bytes()
            hashes = json.loads((folder / _HASHES).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if hashes != _hashes(data, output):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return Entry(data, output.decode("utf-8", "replace"))

    def keep(self, key: str, entry: Entry) -> None:
        """Add an entry. Raises nothing: a result that cannot be kept is compiled again the next time."""
        output = entry.output.encode("utf-8")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder, _PARTIAL)
            with scratch(self.folder, _PARTIAL) as partial:
                whole = partial / key
                whole.mkdir()
                (whole / _FILE).write_bytes(entry.data)
                (whole / _OUTPUT).write_bytes(output)
                (whole / _HASHES).write_text(json.dumps(_hashes(entry.data, output)), encoding="utf-8")
                # Another process may have kept the same entry meanwhile; the rename then fails or is left out.
                if not (self.folder / key).exists():
                    whole.rename(self.folder / key)
        except OSError as error:
            _LOG.warning("%s: the compiled segment is not kept for the next call (%s)", self.folder, error.strerror)


def _hashes(data: bytes, output: bytes) -> dict[str, str]:
    return {_FILE: hashlib.sha256(data).hexdigest(), _OUTPUT: hashlib.sha256(output).hexdigest()}
