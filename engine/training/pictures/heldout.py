"""Which drawings the autoencoder and the super-resolver never see, so that their figures are about new pictures.

Knows keys only. The rule hashes what is drawn and not by whom: a held-out octopus is held out in every style.
"""

from __future__ import annotations

import hashlib

ONE_IN = 20


def artwork_held_out(key: str) -> bool:
    """Whether a drawing (`style/code`, or a file's name) is kept for measuring: 5 % of them, the same everywhere."""
    drawn = key.rpartition("/")[2]
    return int.from_bytes(hashlib.sha256(drawn.encode()).digest()[:4], "big") % ONE_IN == 0
