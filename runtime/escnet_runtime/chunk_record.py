"""The record of a measurement: how long graphs take at which chunk, on which machine.

The specification of ``engines/chunks-BACKEND.json``; what becomes of it is in
:mod:`escnet_runtime.measured_chunks`. Reading is strict, as for a bundle's description.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from .errors import BundleFormatError
from .lanes import usable_cores
from .manifest import check_sha256
from .processor import processor_model, system_name
from .strict_json import parse_object, typed

__all__ = [
    "CPU_BACKENDS",
    "ChunkRecord",
    "ChunkTime",
    "CpuBackend",
    "KindTimes",
    "Machine",
    "Measuring",
]

CpuBackend: TypeAlias = Literal["onnxruntime", "openvino"]
CPU_BACKENDS: Final[tuple[CpuBackend, ...]] = get_args(CpuBackend)

_SCHEMA: Final = "1.0"
_MAX_CHUNK: Final = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What the fastest chunk depends on besides the graphs.

    Attributes:
        backend: what ran the graphs.
        version: of its library, all of it.
        processor: its model.
        cores: that the process might use.
        os: system and architecture, such as "linux-x86_64".
    """

    backend: CpuBackend
    version: str
    processor: str
    cores: int
    os: str

    @classmethod
    def here(cls, backend: CpuBackend, version: str) -> "Machine":
        """This machine, with that version of the backend's library."""
        return cls(
            backend=backend,
            version=version,
            processor=processor_model(),
            cores=usable_cores(),
            os=system_name(),
        )

    def differences(self, here: "Machine") -> list[str]:
        """Fields in which ``here`` is another machine, a phrase for each."""
        return [
            f"{field.name} is {getattr(self, field.name)}, here it is {getattr(here, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(here, field.name)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkTime:
    """Seconds of one graph over all categories, at one chunk: median and extremes of the rounds."""

    chunk: int
    seconds: float
    fastest: float
    slowest: float


@dataclass(frozen=True, kw_only=True, slots=True)
class KindTimes:
    """Graphs of one kind, which differ in weights alone.

    Attributes:
        graph: the one that was measured.
        count: how many there are; each runs once an image.
        chunk: the best for this kind alone.
        times: by chunk, rising.
    """

    graph: str
    count: int
    chunk: int
    times: tuple[ChunkTime, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measuring:
    """How it was measured.

    Attributes:
        date: ISO 8601, UTC.
        categories: of the vocabulary.
        rounds: timed runs of each chunk, in turns.
        noise: share by which a smaller chunk may be slower and is taken all the same.
        memory_bytes: that were free before; None if not known.
        load_before, load_after: means over the last 1, 5 and 15 minutes; None if not known.
    """

    date: str
    categories: int
    rounds: int
    noise: float
    memory_bytes: int | None
    load_before: tuple[float, ...] | None
    load_after: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkRecord:
    """The whole of ``chunks-BACKEND.json``.

    Attributes:
        machine: where it holds.
        chunk: the best for all graphs together: categories at a time.
        graphs: name → sha256 of the ONNX, of every graph that runs by chunk.
        kinds: what was measured, by kind of graph.
        measuring: under which conditions.
    """

    schema_version: str = _SCHEMA
    machine: Machine
    chunk: int
    graphs: dict[str, str]
    kinds: dict[str, KindTimes]
    measuring: Measuring

    @classmethod
    def from_json(cls, text: str, source: str = "the record") -> "ChunkRecord":
        """Read and check a record; ``source`` is what messages call it.

        Raises:
            BundleFormatError: it is malformed, contradicts itself or is of another format version.
        """
        document = parse_object(text, source)
        if document.get("schema_version") != _SCHEMA:
            raise BundleFormatError(
                f"{source} has format {document.get('schema_version')!r:.80}, expected {_SCHEMA!r}."
            )
        record = typed(document, cls)
        _check(record)
        return record

    def to_json(self) -> str:
        """Write the record.

        Raises:
            BundleFormatError: `from_json` would refuse it.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        ChunkRecord.from_json(text)
        return text

    def together(self) -> dict[int, float]:
        """Chunk → seconds an image spends in all graphs that run by chunk."""
        return {
            chunk: sum(kind.count * kind.times[index].seconds for kind in self.kinds.values())
            for index, chunk in enumerate(_chunks(self))
        }

    def misfits(self, graphs: Mapping[str, str]) -> list[str]:
        """Why this record is not one of ``graphs``, a phrase for each reason.

        Args:
            graphs: as :attr:`graphs`, of the bundle as it is.
        """
        found = [f"there is no graph {name!r} any more" for name in self.graphs.keys() - graphs]
        for name, sha256 in graphs.items():
            before = self.graphs.get(name)
            if before is None:
                found.append(f"the graph {name!r} was not there")
            elif before != sha256:
                found.append(
                    f"ONNX of {name!r} had sha256 {before[:12]}…, here it has {sha256[:12]}…"
                )
        return found


def _chunks(record: ChunkRecord) -> tuple[int, ...]:
    """Chunks that were measured."""
    first = next(iter(record.kinds.values()))
    return tuple(time.chunk for time in first.times)


def _check(record: ChunkRecord) -> None:
    """Refuse what no measurement gives."""
    _require(bool(record.kinds), "$.kinds", "is empty, expected at least one kind of graph")
    chunks = _chunks(record)
    rising = all(1 <= chunk <= _MAX_CHUNK for chunk in chunks) and sorted({*chunks}) == [*chunks]
    _require(
        bool(chunks) and rising,
        "$.kinds",
        f"has the chunks {[*chunks]!r:.80}, expected rising numbers from 1 to {_MAX_CHUNK:,}",
    )
    _require(record.chunk in chunks, "$.chunk", f"{record.chunk!r:.40} was not measured")
    for name, digest in record.graphs.items():
        where = f"$.graphs.{name:.80}"
        _require(name.isidentifier(), where, "the name is not an identifier")
        check_sha256(digest, where)
    for name, kind in record.kinds.items():
        _check_kind(f"$.kinds.{name:.80}", kind, record, chunks)
    count = sum(kind.count for kind in record.kinds.values())
    _require(
        count == len(record.graphs), "$.kinds", f"count {count} graphs of {len(record.graphs)}"
    )
    _require(record.machine.cores >= 1, "$.machine.cores", f"{record.machine.cores!r:.40} is none")
    measuring = record.measuring
    for what, number in (("categories", measuring.categories), ("rounds", measuring.rounds)):
        _require(
            1 <= number <= _MAX_CHUNK, f"$.measuring.{what}", f"{number!r:.40} is not plausible"
        )
    _require(0 <= measuring.noise < 1, "$.measuring.noise", f"{measuring.noise!r:.40} is no share")


def _check_kind(where: str, kind: KindTimes, record: ChunkRecord, chunks: tuple[int, ...]) -> None:
    _require(kind.graph in record.graphs, where, f"{kind.graph!r:.80} is none of the graphs")
    _require(kind.count >= 1, where, f"there are {kind.count!r:.40} graphs")
    _require(
        tuple(time.chunk for time in kind.times) == chunks, where, "other chunks than elsewhere"
    )
    _require(kind.chunk in chunks, where, f"the chunk {kind.chunk!r:.40} was not measured")
    for time in kind.times:
        _require(
            0 < time.fastest <= time.seconds <= time.slowest,
            where,
            f"at {time.chunk} categories {time.seconds!r:.40} s is not between "
            f"{time.fastest!r:.40} and {time.slowest!r:.40}",
        )


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise BundleFormatError(f"{where}: {what}.")
