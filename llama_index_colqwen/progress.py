"""tqdm's progress bars, safe in processes that are forked off while a thread draws one.

Knows nothing of what the work is.
"""

from __future__ import annotations

import os

from tqdm.auto import tqdm
from tqdm.std import TqdmDefaultWriteLock

__all__ = ["tqdm"]

if hasattr(os, "register_at_fork"):
    # tqdm takes a lock that processes share, and then one of threads. A child that was forked while another thread drew
    # would find the second taken for ever, and wait with the first, for which its parent would wait for ever, too.
    _LOCK = TqdmDefaultWriteLock.th_lock
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)
