"""Sheets that show what a model saw in an image, from the photo to the label map.

``trace`` collects (a run of the pipeline → dataclasses), ``panels`` and ``sheet`` draw (arrays →
pictures), ``pages`` writes what stands beside the sheets, ``command`` is ``escnet-bench gallery``.
"""
