"""The plan of a run of ``gpu-check``, and the report that a part writes."""

import dataclasses
import json
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from escnet_runtime.atomic import atomic_file

from ..conditions import Conditions
from ..results import SCHEMA_VERSION, plain

__all__ = ["METHODS", "PARTS", "CheckPlan", "Report"]

#: Part → how it is measured.
METHODS: Final = {
    "tests": "pytest -m gpu on this machine, in a process of its own",
    "bundles": "exports of the models' graphs with their weights, for the other parts",
    "pipeline": (
        "labels of one bundle on the CPU (ONNX Runtime's CPU provider, NumPy between the graphs) "
        "and on the GPU (the device pipeline), same images, same vocabulary"
    ),
    "parity": (
        "labels and logits of a bundle on the GPU against the same weights in float32 PyTorch on "
        "CUDA without TF32, behind the same pre- and post-processing"
    ),
    "memory": (
        "what the device's free memory fell by, from before the Segmenter opened to after its "
        "images, against the plan made before the first image; other processes on the GPU count"
    ),
    "latency": (
        "milliseconds from uint8 pixels in host memory to labels in host memory, wall clock of "
        "calls that wait for their result; implementations take turns, image by image, after "
        "warm-up calls of each; percentiles over the rounds"
    ),
    "stages": (
        "milliseconds of each stage by CUDA events, in which the device may wait for the host, and "
        "what enqueueing it takes the host; one image, launched one by one; medians"
    ),
    "soak": (
        "images through Segmenter.stream in three sizes, one after the other; memory of the GPU "
        "and of the process as it goes"
    ),
}
PARTS: Final = tuple(METHODS)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckPlan:
    """What to run.

    Attributes:
        output: folder of the result files.
        bundles: folder of the bundles, ``NAME-PRECISION``; those that are missing are exported.
        models: presets; "tiny" with its trained weights, others with seeded random ones.
        precisions: of the bundles.
        categories: numbers of categories.
        backend: of the runtime, on the GPU.
        size: height and width of the images.
        images: images of the soak.
        repeats: rounds of timing, and images compared.
        chunks: categories at a time to compare, ascending; if empty, the runtime's own choice.
        ort_graphs: whether ONNX Runtime's own CUDA graphs, otherwise off, are timed as well.
        compile: whether torch.compile is timed; it takes minutes for each number of categories.
        device: "cuda", or "cpu" to try the script without a GPU; its results then mean nothing.
    """

    output: str
    bundles: str
    models: tuple[str, ...] = ("tiny", "vit-b-16")
    precisions: tuple[str, ...] = ("fp16",)
    categories: tuple[int, ...] = (19, 58, 150, 847)
    backend: str = "onnxruntime-cuda"
    size: tuple[int, int] = (480, 640)
    images: int = 10_000
    repeats: int = 30
    chunks: tuple[int, ...] = ()
    ort_graphs: bool = False
    compile: bool = True
    device: str = "cuda"

    @classmethod
    def from_json(cls, text: str) -> "CheckPlan":
        """Read what :meth:`to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        lists = ("models", "precisions", "categories", "size", "chunks")
        made: dict[str, Any] = {n: tuple(v) if n in lists else v for n, v in data.items()}
        return cls(**made)

    def to_json(self) -> str:
        """As JSON, for the process of a part."""
        return json.dumps(dataclasses.asdict(self))

    def bundle(self, model: str, precision: str) -> Path:
        """The folder of a bundle."""
        return Path(self.bundles, f"{model}-{precision}")


@dataclass(slots=True)
class Report:
    """A part's file, rewritten after each row."""

    path: Path
    conditions: Conditions
    part: str
    plan: CheckPlan
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, part: str, plan: CheckPlan) -> "Report":
        """Write an empty report and return it."""
        path = Path(plan.output, f"gpu-check-{part}.json")
        report = cls(path, Conditions.now(METHODS[part], device="gpu"), part, plan)
        report.save()
        return report

    def add(self, **row: Any) -> None:
        """Keep a row, and print it."""
        self.rows.append(row)
        self.save()
        print(
            "  " + ", ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True
        )

    def expect(self, holds: bool, otherwise: str) -> None:
        """Unless ``holds``, record ``otherwise``, what was found and expected: the part fails."""
        if not holds:
            self.errors.append(otherwise)
            self.save()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Record an error of one piece of the part, so that the part can go on."""
        try:
            yield
        except Exception as error:  # whatever it is, the next piece may still work
            traceback.print_exc()
            self.errors.append(f"{what}: {type(error).__name__}: {error}")
            self.save()

    def save(self, *, finished: bool = False) -> None:
        """Write the report so far."""
        document = {
            "benchmark": f"gpu-check {self.part}",
            "schema_version": SCHEMA_VERSION,
            "finished": finished,
            "conditions": dataclasses.asdict(self.conditions.finished()),
            "plan": _without_folders(self.plan),
            "rows": self.rows,
            "errors": self.errors,
        }
        text = json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)
        with atomic_file(self.path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def _without_folders(plan: CheckPlan) -> dict[str, Any]:
    found = dataclasses.asdict(plan)
    del found["output"], found["bundles"]
    return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
