"""``make gpu-check``: everything that can only be checked on a GPU, as one script in parts.

Each part runs in a process of its own with a time limit and writes rows to its own file as it goes,
so that no result is lost, whatever happens next. A part that fails records why in its file, and the
others still run.
"""
