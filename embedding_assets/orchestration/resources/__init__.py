"""What assets are handed besides their inputs: how snapshots are loaded, progress shown, and people told.

Here belongs what Dagster gives a step, and a test may replace. The domain gets values and a `tell` from it, and knows
nothing of resources.
"""
