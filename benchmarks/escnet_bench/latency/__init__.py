"""``escnet-bench latency``: time of an image from pixels to labels, in ours and in other runtimes.

For each allocator one process holds all implementations and obeys commands (:mod:`.served`). The
command-line process decides what is called when (:mod:`.measure`), by what it has seen so far
(:mod:`.forecast`). docs/benchmarks.md describes the method and the result.
"""
