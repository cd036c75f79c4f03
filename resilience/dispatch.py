"""The row decision: what becomes of a response when its worker stops.

One request, one decision, made here and recorded; nothing else derives it again (contract section 2).

=============  =====  ==========  ====================  ==================================
disposition    store  background  resilient_background  found dead
=============  =====  ==========  ====================  ==================================
``RESILIENT``  yes    yes         yes                   run again, ``is_recovery``
``BACKGROUND`` yes    yes         no                    ``failed`` by whoever finds it
``FOREGROUND`` yes    no          any                   ``failed`` by whoever finds it
``TRANSIENT``  no     no          any                   nothing stored, nothing to do
=============  =====  ==========  ====================  ==================================

Row 11 of the table is ``RESILIENT`` with checkpoints: the same decision, made better use of by the handler.
"""

from enum import StrEnum


class Disposition(StrEnum):
    """What happens to a response whose worker stopped before its end."""

    RESILIENT = "resilient"
    BACKGROUND = "background"
    FOREGROUND = "foreground"
    TRANSIENT = "transient"

    @property
    def runs_in_background(self) -> bool:
        """True where a queue-triggered function owns the run."""
        return self in (Disposition.RESILIENT, Disposition.BACKGROUND)


def decide(*, store: bool, background: bool, resilient_background: bool) -> Disposition:
    """The disposition of a request; ``background`` without ``store`` never gets here (C7, C8)."""
    if not store:
        return Disposition.TRANSIENT
    if not background:
        return Disposition.FOREGROUND
    return Disposition.RESILIENT if resilient_background else Disposition.BACKGROUND
