"""``escnet-bench``: what was measured or drawn, with the conditions it was made under."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from escnet_engines import COMPILERS
from escnet_runtime.bundle import Bundle, sha256_file
from escnet_runtime.commands.options import add_backend_option, add_chunk_option
from escnet_runtime.console import Console, add_common_options, command_parser, run_command
from escnet_runtime.contract import require_contract
from escnet_runtime.errors import BackendError, InputError
from escnet_runtime.labelled import dataset_name, open_labelled
from escnet_runtime.vocabulary import MAX_CATEGORIES, read_classes_file

from .builds import METHOD as BUILDS_METHOD
from .builds import BuildRow, measure_builds
from .conditions import Conditions
from .footprint import METHOD as FOOTPRINT_METHOD
from .footprint import FootprintRow, Startup, measure_footprint
from .gallery.command import add_gallery_options, gallery
from .latency.command import latency
from .latency.options import add_latency_options
from .models import require_checkpoint
from .parity_command import add_parity_options, parity
from .ppg_time import PpgRow, measure_ppg, runtime_implementations
from .report.command import add_report_options, report
from .results import Document, result_document, saving
from .shortlist_command import add_shortlist_options, shortlists

if TYPE_CHECKING:
    from .gflop import GflopRow
    from .precision_table import PrecisionRow

__all__ = ["GFLOP_CHUNK", "main"]

#: Categories at a time in the bundles that escnet-export writes.
GFLOP_CHUNK: Final = 16
_PRESET: Final = "tiny"
_PRECISIONS: Final = ("fp32", "fp16", "bf16", "int8+fp16", "int8+fp32", "fp8+fp16")
_PPG_METHOD: Final = (
    "wall clock of whole calls, percentiles of the repeats after 3 warm-up calls; all categories "
    "in one call; maps made from a seed"
)
_SHARED_BLOCKS: Final = ("sam", "fuse", "vlf")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(_parser(), _bench, argv)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "escnet-bench",
        "Measure ESC-Net, and draw what it does, with the conditions that belong to it.",
        common=False,
    )
    benchmarks = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    _add_gflop(_subparser(benchmarks, "gflop", "count the operations of one image (needs torch)"))
    text = "time of an image, beside PyTorch and others, with memory, floor and energy"
    add_latency_options(_subparser(benchmarks, "latency", text))
    _add_footprint(
        _subparser(benchmarks, "footprint", "memory, time and cold start of a bundle (no torch)")
    )
    _add_ppg(_subparser(benchmarks, "ppg", "time of the prompt generator on this CPU"))
    text = "compile a bundle's graphs: size, scratch, time and memory of each build (no torch)"
    _add_builds(_subparser(benchmarks, "builds", text))
    text = "what each precision costs: mIoU, equal labels, flips, size, CPU time (needs torch)"
    _add_precision(_subparser(benchmarks, "precision", text))
    text = "what giving the model fewer of many categories saves and costs (no torch)"
    add_shortlist_options(_subparser(benchmarks, "shortlist", text))
    text = "a bundle on labelled images, against the truth and float32 PyTorch (if it is here)"
    add_parity_options(_subparser(benchmarks, "parity", text))
    text = "result files of any number of machines as one page and plots"
    add_report_options(_subparser(benchmarks, "report", text, result_file=False))
    text = "draw images with their masks and how the correlation and the prompts lead to them"
    add_gallery_options(_subparser(benchmarks, "gallery", text, result_file=False))
    return parser


def _subparser(
    benchmarks: Any, name: str, text: str, *, result_file: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = benchmarks.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    if result_file:
        parser.add_argument(
            "--output", type=Path, metavar="FILE", help="also write the JSON object to this file"
        )
    add_common_options(parser)
    return parser


def _add_gflop(parser: argparse.ArgumentParser) -> None:
    _add_categories(parser, [19, 58, 150, 847])
    parser.add_argument("--preset", default=_PRESET, help=f"a configuration (default: {_PRESET})")
    parser.add_argument(
        "--chunk",
        type=int,
        default=GFLOP_CHUNK,
        metavar="N",
        help="categories at a time in the shipped form, rounded up to whole groups; what they "
        f"share is computed once a chunk (default: {GFLOP_CHUNK}, as in a bundle)",
    )


def _add_footprint(parser: argparse.ArgumentParser) -> None:
    _add_categories(parser, [19, 150, 847])
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="BUNDLE", help="folder of the bundle"
    )
    parser.add_argument(
        "--image",
        type=Path,
        metavar="FILE",
        help="to segment (default: a made-up one of 640×480)",
    )
    parser.add_argument(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help="category names, of which the first are taken (default: generated names)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="images to time (default: 3)"
    )
    add_backend_option(parser)
    add_chunk_option(parser)


def _add_ppg(parser: argparse.ArgumentParser) -> None:
    _add_categories(parser, [19, 150, 847])
    parser.add_argument(
        "--grid",
        type=int,
        nargs=2,
        default=[24, 24],
        metavar=("H", "W"),
        help="cells of a map (default: 24 24)",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=("c", "numpy", "torch"),
        help="what to time (default: the runtime's that are here, c and numpy)",
    )
    parser.add_argument(
        "--repeats", type=int, default=30, metavar="N", help="calls to time (default: 30)"
    )


def _add_builds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="BUNDLE", help="folder of the bundle"
    )
    parser.add_argument(
        "--backend",
        choices=COMPILERS,
        default="tensorrt-rtx",
        help="what compiles (default: tensorrt-rtx)",
    )
    parser.add_argument(
        "--target",
        default="sm_86",
        metavar="sm_86,...",
        help="GPUs to compile for (default: sm_86)",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        nargs="+",
        default=[16, 32, 64, 128],
        metavar="N",
        help="categories at a time, each a build (default: 16 32 64 128)",
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="an escnet checkpoint (default: the trained tiny that ships)",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=list(_PRECISIONS),
        metavar="NAME",
        help="int8+fp32 is int8 with the rest in float32, and so with fp8 (default: "
        f"{' '.join(_PRECISIONS)})",
    )
    parser.add_argument(
        "--images",
        default="shapes:heldout",
        metavar="DATASET",
        help="labelled images that the figures are of (default: shapes:heldout)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=24,
        metavar="N",
        help="the first so many of them (default: 24)",
    )
    parser.add_argument(
        "--gate-images",
        default="shapes:train",
        metavar="DATASET",
        help="labelled images that int8 and fp8 are calibrated on, and that each budget is held on "
        "(default: shapes:train)",
    )
    parser.add_argument(
        "--gate-limit",
        type=int,
        default=4,
        metavar="N",
        help="the first so many of them; each takes memory for all that its graphs compute "
        "(default: 4)",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="keep bundles and figures there; the same command goes on where it was interrupted "
        "(default: a temporary folder)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, metavar="N", help="images to time (default: 5)"
    )


def _add_categories(parser: argparse.ArgumentParser, default: list[int]) -> None:
    parser.add_argument(
        "--categories",
        type=int,
        nargs="+",
        default=default,
        metavar="N",
        help=f"numbers of categories (default: {' '.join(map(str, default))})",
    )


def _bench(arguments: argparse.Namespace, console: Console) -> tuple[int, Mapping[str, Any]]:
    if arguments.benchmark == "gallery":
        return 0, gallery(arguments, console)
    if arguments.benchmark == "report":
        return 0, report(arguments, console)
    without_categories = {
        "builds": _builds,
        "latency": latency,
        "parity": parity,
        "precision": _precision,
        "shortlist": shortlists,
    }
    if arguments.benchmark in without_categories:
        with saving(arguments.output) as save:
            document = without_categories[arguments.benchmark](arguments, console)
            save(document)
        return 0, document
    least, most = min(arguments.categories), max(arguments.categories)
    if least < 1 or most > MAX_CATEGORIES:
        wrong = least if least < 1 else most
        raise InputError(f"--categories has {wrong}, expected 1 to {MAX_CATEGORIES}")
    run = {"gflop": _gflop, "footprint": _footprint, "ppg": _ppg}[arguments.benchmark]
    with saving(arguments.output) as save:
        document = run(arguments, console)
        save(document)
    return 0, document


def _gflop(arguments: argparse.Namespace, console: Console) -> Document:
    try:
        from escnet.presets import preset

        from .gflop import METHOD, gflop_rows
    except ModuleNotFoundError as error:
        raise BackendError(
            f"counting operations needs {error.name}, which is not installed: install "
            "escnet-bench[torch]"
        ) from error
    config = preset(arguments.preset)
    conditions = Conditions.now(METHOD)
    with console.progress(f"count {config.name}", len(arguments.categories)) as advance:
        rows = gflop_rows(config, arguments.categories, chunk=arguments.chunk, step=advance)
    console.print(_gflop_table(rows), METHOD)
    return result_document("gflop", conditions.finished(), rows)


def _footprint(arguments: argparse.Namespace, console: Console) -> Document:
    path = arguments.classes_file
    names = None if path is None else read_classes_file(path)
    bundle = Bundle.open(arguments.bundle)
    require_contract(bundle.manifest)  # said here, not by each process that measures
    conditions = Conditions.now(FOOTPRINT_METHOD, bundle, device="cpu")
    with console.progress("measure", 2 * len(arguments.categories)) as advance:
        rows = measure_footprint(
            arguments.bundle,
            arguments.categories,
            image=arguments.image,
            names=names,
            repeats=arguments.repeats,
            backend=arguments.backend,
            chunk=arguments.chunk,
            step=advance,
        )
    first = rows[0]
    console.print(
        f"{first.backend}, chunks of {first.chunk} categories, image {first.image}",
        _footprint_table(rows),
        _startup_table(rows),
        _stage_table(rows),
    )
    return result_document("footprint", conditions.finished(), rows)


def _ppg(arguments: argparse.Namespace, console: Console) -> Document:
    conditions = Conditions.now(_PPG_METHOD, device="cpu")
    height, width = arguments.grid
    rows = measure_ppg(
        arguments.categories,
        (height, width),
        implementations=arguments.implementations or runtime_implementations(),
        repeats=arguments.repeats,
    )
    console.print(_ppg_table(rows))
    return result_document("ppg", conditions.finished(), rows)


def _builds(arguments: argparse.Namespace, console: Console) -> Document:
    bundle = Bundle.open(arguments.bundle)
    conditions = Conditions.now(BUILDS_METHOD, bundle)
    with console.progress("compile", None) as advance:
        rows = measure_builds(
            bundle,
            arguments.chunk,
            backend=arguments.backend,
            target=arguments.target,
            step=advance,
        )
    console.print(_builds_table(rows), BUILDS_METHOD)
    return result_document("builds", conditions.finished(), rows)


def _builds_table(rows: Sequence[BuildRow]) -> Table:
    first = rows[0]
    table = _table(
        f"Builds of {first.model} at {first.precision}, {first.library}",
        "graph",
        "chunk",
        "ONNX MB",
        "engine MB",
        "scratch MB",
        "s",
        "host MB",
    )
    for row in rows:
        sizes = (row.onnx_bytes, row.engine_bytes, row.scratch_bytes)
        table.add_row(
            row.graph,
            str(row.chunk),
            *["unknown" if size is None else f"{size / 1e6:,.1f}" for size in sizes],
            f"{row.seconds:.2f}",
            _megabytes(row.host_bytes),
        )
    return table


def _precision(arguments: argparse.Namespace, console: Console) -> Document:
    try:
        from escnet.weights import shipped_checkpoint

        from .precision_table import METHOD, Task, precision_rows
    except ModuleNotFoundError as error:
        raise BackendError(
            f"exporting needs {error.name}, which is not installed: install escnet-bench[torch]"
        ) from error
    for option in ("limit", "gate_limit", "repeats"):
        if getattr(arguments, option) < 1:
            name = f"--{option.replace('_', '-')}"
            raise InputError(f"{name} is {getattr(arguments, option)}, expected at least 1")
    checkpoint = arguments.checkpoint or shipped_checkpoint(_PRESET)
    require_checkpoint(checkpoint)
    images = len(open_labelled(arguments.images))
    task = Task(
        checkpoint=checkpoint,
        images=arguments.images,
        limit=min(arguments.limit, images),
        gate_images=arguments.gate_images,
        gate_limit=arguments.gate_limit,
        repeats=arguments.repeats,
    )
    conditions = Conditions.now(
        f"{METHOD}; images: {dataset_name(task.images)}, of the gate: the first {task.gate_limit} "
        f"of {dataset_name(task.gate_images)}; checkpoint: {checkpoint.name}, sha256 "
        f"{sha256_file(checkpoint)[:16]}",
        device="cpu",
    )
    names = tuple(dict.fromkeys(arguments.precisions))
    with ExitStack() as stack:
        work = arguments.work or Path(
            stack.enter_context(TemporaryDirectory(prefix="escnet-precision-"))
        )
        advance = stack.enter_context(
            console.progress("precisions", (len(names) + 1) * task.limit + 1)
        )
        rows = precision_rows(task, names, work, step=advance)
    console.print(_precision_table(rows), METHOD)
    return result_document("precision", conditions.finished(), rows)


def _precision_table(rows: Sequence["PrecisionRow"]) -> Table:
    table = _table(
        "Precisions",
        "precision",
        "mIoU",
        "of torch",
        "equal labels",
        "prompts flipped",
        "MB",
        "s an image",
        "kept higher",
    )
    for row in rows:
        shares = ["" if value is None else f"{value:.2%}" for value in (row.miou, row.torch_miou)]
        table.add_row(
            row.precision,
            *shares,
            f"{row.pixel_agreement:.3%}",
            f"{row.prompt_flips} of {row.prompts}",
            f"{row.bytes / 1e6:.1f}",
            "not timed" if row.image_seconds is None else f"{row.image_seconds:.3f}",
            ", ".join(row.kept_higher) or "nothing",
        )
    return table


def _gflop_table(rows: Sequence["GflopRow"]) -> Table:
    """GFLOP by number of categories and form; the blocks are added up."""
    first = rows[0]
    blocks = sum(name.endswith("_sam") for name in first.stages)
    kinds = [f"{blocks}× {kind}" for kind in _SHARED_BLOCKS]
    table = _table(
        f"GFLOP of one image, {first.preset}",
        "categories",
        "form",
        "image encoder",
        "correlation",
        *kinds,
        "decoder",
        "total",
        "of plain",
    )
    for row in rows:
        stages = [row.stages["image_encoder"], row.stages["correlation"]]
        stages += [
            sum(value for name, value in row.stages.items() if name.endswith(f"_{kind}"))
            for kind in _SHARED_BLOCKS
        ]
        numbers = [f"{value:,.2f}" for value in (*stages, row.stages["decoder"], row.gflop)]
        form = row.form if row.chunk is None else f"{row.form}, chunks of {row.chunk}"
        table.add_row(str(row.categories), form, *numbers, f"{row.of_plain:.3f}")
    return table


def _footprint_table(rows: Sequence[FootprintRow]) -> Table:
    table = _table(
        "Memory and time",
        "categories",
        "s an image",
        "prompts",
        "peak MB",
    )
    for row in rows:
        table.add_row(
            str(row.categories),
            f"{row.image_seconds:.3f}",
            f"{row.prompt_share:.1%}",
            _megabytes(row.peak_memory_bytes),
        )
    return table


def _startup_table(rows: Sequence[FootprintRow]) -> Table:
    steps = ("interpreter", "imports", "open", "vocabulary", "image", "total")
    title = "Seconds to the first label map"
    table = _table(title, "categories", "text cache", *steps, "peak MB until then")
    for row in rows:
        caches: tuple[tuple[str, Startup], ...] = (
            ("empty", row.empty_cache),
            ("filled", row.filled_cache),
        )
        for name, startup in caches:
            seconds = [f"{getattr(startup, step):.3f}" for step in steps]
            peak = _megabytes(startup.peak_memory_bytes)
            table.add_row(str(row.categories), name, *seconds, peak)
    return table


def _stage_table(rows: Sequence[FootprintRow]) -> Table:
    """Stages downwards: there are more of them than numbers of categories."""
    table = _table(
        "Seconds of each stage, an image", "stage", *[f"N = {row.categories}" for row in rows]
    )
    for stage in rows[0].stages:
        table.add_row(stage, *[f"{row.stages[stage]:.4f}" for row in rows])
    return table


def _ppg_table(rows: Sequence[PpgRow]) -> Table:
    table = _table(
        "Prompt generator, ms", "implementation", "maps", "categories", "p50", "p95", "p99"
    )
    for row in rows:
        times = [f"{value:.2f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)]
        table.add_row(row.implementation, row.maps, str(row.categories), *times)
    return table


def _table(title: str, *columns: str) -> Table:
    words = {"form", "graph", "text cache", "stage", "implementation", "maps"}
    words |= {"precision", "kept higher"}
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right")
    return table


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:,.0f}"
