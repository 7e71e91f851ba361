"""The two foundations of ``tiny``, trained here from nothing: a small CLIP and a small SAM.

The paper builds on a CLIP and a SAM that others trained. `vit-b-16` and `vit-l-14-336` do the same;
`tiny` retells the story in the small world of :mod:`escnet_runtime.world`.
"""
