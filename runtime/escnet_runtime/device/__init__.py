"""The device layer: memory with one owner, streams, events, kernels and graphs of one GPU.

:mod:`.base` says what the rest of the runtime may ask of it.
"""
