"""Compiles the ONNX graphs of a bundle for a target: TensorRT, TensorRT-RTX, ONNX Runtime.

Nothing of that is in this version: the package holds the place, the dependency rules and the
name, and the engine builders come in a later one. Bundles run without it, on the ONNX Runtime
backend of ``escnet_runtime``.
"""

__all__: list[str] = []
