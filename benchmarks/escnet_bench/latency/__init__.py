"""``escnet-bench latency``: one image from pixels to labels, here and in what people run otherwise.

A process for each allocator holds all implementations and does what it is told
(:mod:`.served`); the command decides what is called when (:mod:`.measure`), from what it has
seen so far (:mod:`.forecast`). docs/benchmarks.md describes the method and the result.
"""
