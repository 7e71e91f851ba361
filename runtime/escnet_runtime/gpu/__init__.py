"""One image on a device: memory planned before, one upload, one download, nothing waited for.

- :mod:`.layout` walks the order of the graphs and gives every tensor its place in one arena;
- :mod:`.backend` says what runs a graph on addresses; ONNX Runtime and TensorRT have a module each;
- :mod:`.pipeline` enqueues an image; :mod:`.engine` is what a Segmenter asks.
"""
