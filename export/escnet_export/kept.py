"""A block that is kept at a higher precision than the bundle's: why, and at what cost."""

from dataclasses import dataclass

from escnet_runtime.manifest import Precision

__all__ = ["Kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One line of the accuracy gate's report.

    Attributes:
        block: a graph, or a part of the image encoder such as ``image_encoder.block3``.
        precision: what it computes in.
        instead_of: what it would compute in if it were not raised.
        why: the reason, a clause.
        damage: what the block alone costs at ``instead_of``, in budgets; infinite if its numbers
            are not finite. None if it was raised because it overflows: then it was not measured.
        bytes: how much larger the bundle is because of it.
        milliseconds: how much longer one run of ``timed`` takes on this machine, on ONNX Runtime's
            CPU provider; below 0 if it is faster. None if it was not measured.
        timed: the graph that was timed: the block, or the whole image encoder with all its parts
            that are kept higher.
    """

    block: str
    precision: Precision
    instead_of: Precision
    why: str
    damage: float | None
    bytes: int
    milliseconds: float | None
    timed: str

    def sentence(self) -> str:
        """For people: what, why, and what it costs."""
        time = "" if self.milliseconds is None else f", {self.milliseconds:+.2f} ms ({self.timed})"
        return (
            f"{self.block} at {self.precision} instead of {self.instead_of}: {self.why}; "
            f"{self.bytes / 1e6:+.2f} MB{time}"
        )
