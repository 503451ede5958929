"""In front of the real package on the path: the same, but for `interpreter`, which has Edge TPUs that obey a file."""

import sys
from pathlib import Path

_here = Path(__file__).resolve().parent
__path__ = [str(_here), *(str(Path(p) / "ai_edge_litert") for p in sys.path if Path(p).resolve() != _here.parent)]
