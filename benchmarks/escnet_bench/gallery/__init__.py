"""Sheets that show what a model saw in an image, from the photo to the label map.

``trace`` records a run of the pipeline in dataclasses, ``panels`` and ``sheet`` draw arrays as
pictures, ``pages`` writes the page and the figures, and ``command`` is ``escnet-bench gallery``.
"""
