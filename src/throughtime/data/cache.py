"""Where prepared data is kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The cache folder: $THROUGHTIME_CACHE, or the user's cache folder of this system.

    Everything in it can be made again; it may be removed at any time.
    """
    chosen = os.environ.get("THROUGHTIME_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("throughtime", appauthor=False))
