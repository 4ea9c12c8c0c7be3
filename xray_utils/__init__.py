"""Helpers of the chest X-ray course, in the order the data goes. `import xray_utils as xu` is all it takes.

Every function raises ValueError for a bad argument; the message begins with its name and says what is allowed.
Other exceptions are listed in the docstrings.
A module is imported when one of its names is first used: torch alone takes seconds, and not every page needs it.
The names are listed in `__init__.pyi`, which editors read, too.
"""

import os

import lazy_loader

# Read when torch is imported (Linux): a thread that waits for others soon sleeps. Otherwise it keeps a core busy that
# another program could use (results/speed.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
