"""The drawings that autoencoder and super-resolver never train on, so that their figures are about new pictures.

The rule hashes a drawing's subject, not its artist: a held-out octopus is held out in every style.
"""

from __future__ import annotations

import hashlib

HELD_OUT_ONE_IN = 20


def is_held_out(key: str) -> bool:
    """Tell whether a drawing (`style/code`, or a file's name) is held out: 5 % of them, the same everywhere."""
    subject = key.rpartition("/")[2]
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0
