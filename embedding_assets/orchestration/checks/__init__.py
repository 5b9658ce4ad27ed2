"""The asset checks: verdicts on what a run is about to commit, or has.

Here belongs how a verdict is worded for Dagster. What is measured comes from the domain packages.
"""
