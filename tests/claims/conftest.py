"""The programs beside these tests import each other by name, as when they are started."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]
