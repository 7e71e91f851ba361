"""``make demo``: export the default preset, then segment a photo in a process that has no torch.

Leaves ``demo/bundle/``, ``demo/photo.png``, ``demo/overlay.png`` and ``demo/labels.png``.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

#: The second process refuses to import torch, so what it does it does without.
_SEGMENT = (
    "import sys; sys.modules['torch'] = None; "
    "from escnet_runtime.commands.segment import main; sys.exit(main())"
)


def main() -> int:
    """Export, segment, and say what was done and where the results are."""
    demo = ROOT / "demo"
    demo.mkdir(exist_ok=True)
    bundle = demo / "bundle"
    print("1. escnet-export --precision fp16 --output demo/bundle  (about a minute)", flush=True)
    export = ["-m", "escnet_export", "--precision", "fp16", "--output", str(bundle), "--json"]
    exported = _run([sys.executable, *export])
    if exported is None:
        return 1
    parity = exported["parity"]
    print(f"   {exported['seconds']:.0f} s; {parity['reason']}")

    photo, categories, new = _photo(demo)
    print(f"   The photo shows what training never saw: {', '.join(new)}.")
    print(
        "2. escnet-segment demo/bundle demo/photo.png  (a new process, without torch)", flush=True
    )
    start = time.perf_counter()
    segment = [str(bundle), str(photo), "--classes", ", ".join(categories), "--json"]
    result = _run([sys.executable, "-c", _SEGMENT, *segment, "--output", str(demo)])
    if result is None:
        return 1
    seconds = time.perf_counter() - start
    (image,) = result["images"]
    for kind in ("labels", "overlay"):
        Path(image[kind]).replace(demo / f"{kind}.png")
    print(f"   {seconds:.1f} s with start-up, {image['milliseconds']:.0f} ms for the image")
    print("3. Look at demo/overlay.png; the label map is demo/labels.png (index → name inside).")
    print("   How exact the export is: demo/bundle/parity.html.")
    if result.get("note"):
        print(f"   NOTE: {result['note']}.")
    return 0


def _photo(demo: Path) -> tuple[Path, tuple[str, ...], list[str]]:
    """Write a held-out scene; its path, what to look for, and what of it training never named."""
    from PIL import Image

    from escnet.presets import DEFAULT_PRESET, preset
    from escnet_export.scenes import default_scenes
    from escnet_runtime.world.words import HELD_OUT

    scenes = default_scenes(preset(DEFAULT_PRESET))
    path = demo / "photo.png"
    Image.fromarray(scenes.images[0]).save(path)
    held_out = {one.name for one in HELD_OUT}
    return path, scenes.categories, [name for name in scenes.shown[0] if name in held_out]


def _run(command: list[str]) -> dict[str, Any] | None:
    """The JSON a command prints, or None after it failed and said why."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"   failed with exit status {done.returncode}: {done.stdout}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    sys.exit(main())
