"""The error for a job that this engine refuses or fails, with one sentence for the member and who is to blame."""

from __future__ import annotations

from engine.contract.fields import Blame


class JobRejected(Exception):
    """`sentence` is shown as it is; `blame` decides the charge, and whether another worker may try."""

    def __init__(self, sentence: str, blame: Blame) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.blame: Blame = blame
