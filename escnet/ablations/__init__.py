"""The paper's ablations in the small world: each part changed alone, all with the same budget.

The foundations are those of ``tiny``; ``docs/ablations.md`` says how to run and read it.
"""
