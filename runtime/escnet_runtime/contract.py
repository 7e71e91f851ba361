"""The graphs that a model has, and whether those of a bundle are these.

A bundle's description gives sizes twice, of the model and of each graph's inputs and outputs. A
bundle in which the two disagree is refused before anything is allocated for it or run.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from .errors import BundleFormatError
from .manifest import Manifest, TensorSpec
from .order import image_steps, refined

__all__ = ["Port", "graph_ports", "require_contract"]

#: A size, the name of a dynamic axis, or None for a size that the model leaves to the graph.
_Axis: TypeAlias = int | str | None
_FLOATS: Final = frozenset({"float32", "float16", "bfloat16"})
_FLOAT32: Final = frozenset({"float32"})
_INT32: Final = frozenset({"int32"})


@dataclasses.dataclass(frozen=True, slots=True)
class Port:
    """An input or output as the format has it: its types, and its axes, None for any size."""

    types: frozenset[str]
    shape: tuple[_Axis, ...]

    def fits(self, spec: TensorSpec) -> bool:
        """Whether ``spec`` is this port."""
        return (
            spec.dtype in self.types
            and len(spec.shape) == len(self.shape)
            and all(
                isinstance(got, int) if want is None else got == want
                for got, want in zip(spec.shape, self.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        shape = ", ".join("any" if axis is None else str(axis) for axis in self.shape)
        return f"{'/'.join(sorted(self.types))} [{shape}]"


_Ports: TypeAlias = dict[str, Port]


def graph_ports(manifest: Manifest) -> dict[str, tuple[_Ports, _Ports]]:
    """Name of each graph of the model → its inputs and its outputs, by name (docs/bundle.md)."""
    return {
        "image_encoder": _image_encoder(manifest),
        "text_encoder": (
            {"tokens": _i("t", "l")},
            {"embeddings": _f("t", manifest.model.embed_dim)},
        ),
        "correlation": (
            {"features": _f(1, manifest.model.embed_dim, *manifest.model.grid)} | _text(manifest),
            _scores(manifest) | _embedding(manifest),
        ),
        **dict(_blocks(manifest)),
        "decoder": (
            _embedding(manifest) | _skips(manifest, 1),
            {"logits": _f("n", *manifest.model.logits)},
        ),
    }


def require_contract(manifest: Manifest) -> None:
    """Refuse a bundle that lacks a graph of its model, or in which one has other inputs or outputs.

    Graphs beside those of the model are left alone: nothing runs them.

    Raises:
        BundleFormatError: says which graph and port, what was got and what was expected.
    """
    if manifest.constants.preprocessing.size != manifest.model.image_size:
        raise BundleFormatError(
            f"The preprocessing makes images of {manifest.constants.preprocessing.size} px, the "
            f"model takes {manifest.model.image_size}. {_ADVICE}"
        )
    # Counted before the graphs are listed: that is a list as long as the description says.
    if 4 + 4 * manifest.model.blocks > len(manifest.stages):
        raise BundleFormatError(
            f"The model has {manifest.model.blocks:,} blocks, so {4 + 4 * manifest.model.blocks:,} "
            f"graphs; the bundle has {len(manifest.stages)}. {_ADVICE}"
        )
    for name, expected in graph_ports(manifest).items():
        stage = manifest.stages.get(name)
        if stage is None:
            raise BundleFormatError(f"The bundle has no graph {name!r}. {_ADVICE}")
        for what, ports, specs in zip(
            ("inputs", "outputs"), expected, (stage.inputs, stage.outputs), strict=True
        ):
            _check(f"graph {name!r}", what, ports, specs)
    _check_heads(manifest)
    _check_edges(manifest)


_ADVICE: Final = "Export the bundle again."


def _check(
    graph: str, what: str, expected: Mapping[str, Port], specs: tuple[TensorSpec, ...]
) -> None:
    names = [spec.name for spec in specs]
    if sorted(names) != sorted(expected):
        raise BundleFormatError(
            f"The {graph} has the {what} {', '.join(names)!s:.200}; expected "
            f"{', '.join(expected)}. {_ADVICE}"
        )
    for spec in specs:
        if not expected[spec.name].fits(spec):
            raise BundleFormatError(
                f"The {graph} has {spec.name} {_told(spec):.200}; a model of the sizes in this "
                f"bundle has {expected[spec.name]}. {_ADVICE}"
            )


def _check_heads(manifest: Manifest) -> None:
    """Heads times their width is the width of the embedding; all graphs of a block agree."""
    width = manifest.model.hidden_dim
    for block in range(manifest.model.blocks):
        shapes = [
            spec.shape[-3:-1] if spec.name.startswith("kv") else spec.shape[-2:]
            for part in ("image", "text")
            for stage in [manifest.stages[f"esc{block}_{part}"]]
            for spec in (*stage.inputs, *stage.outputs)
            if spec.name in ("kv_sum", "k_sum", "kv_mean", "k_mean")
        ]
        for heads, each in shapes:
            fits = isinstance(heads, int) and isinstance(each, int) and heads * each == width
            if not fits or (heads, each) != shapes[0]:
                raise BundleFormatError(
                    f"The sums of block {block} have {heads} heads of {each}; expected the same in "
                    f"all its graphs, and {width} together. {_ADVICE}"
                )


def _check_edges(manifest: Manifest) -> None:
    """What a graph reads is what the one before wrote, also in types and sizes left to the graphs.

    A library that is given addresses alone, as TensorRT, would read something else there, and
    beside it.
    """
    made: dict[str, tuple[str, TensorSpec]] = {}
    for step in image_steps(manifest.model.blocks, 1):
        stage = manifest.stages.get(step.stage)
        if stage is None:  # the prompt generator
            continue
        for spec in stage.inputs:
            maker, given = made.get(spec.name, (step.stage, spec))
            # The first axis counts images or categories, by a name or a number.
            if (given.dtype, given.shape[1:]) != (spec.dtype, spec.shape[1:]):
                raise BundleFormatError(
                    f"The graph {step.stage!r} reads {spec.name} as {_told(spec)}, and {maker!r} "
                    f"writes {_told(given)}. {_ADVICE}"
                )
        made |= {refined(spec.name): (step.stage, spec) for spec in stage.outputs}


def _told(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _image_encoder(manifest: Manifest) -> tuple[_Ports, _Ports]:
    model = manifest.model
    outputs = {
        "features": _f("b", model.embed_dim, *model.grid),
        "block_features": _g("b", model.sam_dim, *model.grid),
    }
    image = _f("b", 3, model.image_size, model.image_size)
    return {"image": image}, outputs | _skips(manifest, "b")


def _blocks(manifest: Manifest) -> Iterator[tuple[str, tuple[_Ports, _Ports]]]:
    model, constants = manifest.model, manifest.constants
    features = _g(1, model.sam_dim, *model.grid)
    regions, pixels = constants.ppg.regions, model.grid[0] * model.grid[1]
    maps, weight = ("n", *model.grid), {"weight": _f("g", constants.group)}
    prompts = {
        "points": _f("n", regions, 2),
        "point_labels": _i("n", regions),
        "regions": _i(*maps),
        "probabilities": _f(*maps),
    }
    guidance = {"guidance": _g(1, model.hidden_dim, *model.grid)}
    refined = {f"{name}_out": port for name, port in _embedding(manifest).items()}
    for block in range(model.blocks):
        yield (
            f"esc{block}_sam",
            (
                {"block_features": features} | prompts | weight,
                {"enhanced_sum": _f("g", model.sam_dim, *model.grid)},
            ),
        )
        yield (
            f"esc{block}_fuse",
            (
                {
                    "block_features": features,
                    "enhanced_mean": _f(1, model.sam_dim, *model.grid),
                },
                {"block_features_out": features} | guidance,
            ),
        )
        yield (
            f"esc{block}_image",
            (
                _embedding(manifest) | guidance | _text(manifest) | weight,
                refined
                | {
                    "kv_sum": _f("g", pixels, None, None, None),
                    "k_sum": _f("g", pixels, None, None),
                },
            ),
        )
        yield (
            f"esc{block}_text",
            (
                _embedding(manifest)
                | _text(manifest)
                | _scores(manifest)
                | {"kv_mean": _f(pixels, None, None, None), "k_mean": _f(pixels, None, None)},
                refined | {"scores_out": _f(*maps)},
            ),
        )


def _text(manifest: Manifest) -> _Ports:
    return {"text": _f("n", manifest.model.embed_dim)}


def _scores(manifest: Manifest) -> _Ports:
    return {"scores": _f("n", *manifest.model.grid)}


def _embedding(manifest: Manifest) -> _Ports:
    return {"embedding": _g("n", *manifest.model.grid, manifest.model.hidden_dim)}


def _skips(manifest: Manifest, batch: _Axis) -> _Ports:
    height, width = manifest.model.grid
    return {
        "skip0": _g(batch, None, 2 * height, 2 * width),
        "skip1": _g(batch, None, 4 * height, 4 * width),
    }


def _f(*shape: _Axis) -> Port:
    return Port(_FLOAT32, shape)


def _g(*shape: _Axis) -> Port:
    """What only travels from graph to graph: of their type."""
    return Port(_FLOATS, shape)


def _i(*shape: _Axis) -> Port:
    return Port(_INT32, shape)
