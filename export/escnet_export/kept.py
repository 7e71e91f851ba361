"""A block that is kept at a higher precision than the bundle's, and what is known of it."""

from dataclasses import dataclass

from escnet_runtime.manifest import Precision

__all__ = ["Kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One line of the accuracy gate's report.

    Attributes:
        block: a graph, or a part of the image encoder such as ``image_encoder.block3``.
        precision: what it computes in.
        instead_of: what it would compute in otherwise.
        why: a sentence.
        damage: what the block alone, at ``instead_of``, costs of the budget, as a multiple of it:
            infinite where numbers are not finite. None where it overflows and was not measured.
        bytes: by how much the bundle is larger for it.
        milliseconds: by how much one run of ``timed`` takes longer on this machine, on ONNX
            Runtime's CPU provider; less than 0 where it is faster. None where it was not measured.
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
