"""Where tests find what lies outside the repository; the bundle of most tests; the examples."""

import importlib.util
from pathlib import Path
from types import ModuleType

__all__ = ["ROOT", "example", "export_tiny", "shared_data"]

ROOT = Path(__file__).resolve().parent.parent


def shared_data() -> Path | None:
    """The folder ``shared/data`` beside the repository, or None where there is none.

    It holds photographs and lists of class names. A test that uses it skips on None.
    """
    folder = ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def export_tiny(output: Path) -> None:
    """The bundle of most tests: the default preset at fp16 with seeded random weights."""
    from escnet.build import build_model
    from escnet.presets import preset
    from escnet_export import export_bundle
    from escnet_runtime.manifest import Precision

    export_bundle(
        build_model(preset("tiny")),
        output,
        precision=Precision.FP16,
        weights="seeded random (seed 0)",
        trained=False,
        check_categories=(2,),
    )


def example(name: str) -> ModuleType:
    """An example of the runtime, which no package holds: ``runtime/examples/NAME.py``."""
    path = ROOT / "runtime" / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
