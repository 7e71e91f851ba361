"""``make gpu-check``: everything that only a GPU can tell, as one script in parts.

Each part runs in a process of its own with a time limit and writes its rows to its own file as it
goes, so that what is done stays done, whatever happens next. A part that fails says why in its
file, and the others still run.
"""
