"""Benchmarks of ESC-Net, measured and reported with their conditions: ``escnet-bench``.

Measuring a bundle needs no PyTorch; counting operations does (``escnet-bench[torch]``).
"""

__all__: list[str] = []
