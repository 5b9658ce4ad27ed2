"""Rows into tables: the choice of a way, a delta on what readers see, or a new generation aside.

Here belongs what makes a table's rows those of a snapshot, and proves it before it commits. What readers see of a new
generation, and when, belongs to `publishing`; its indexes to `indexes`.
"""
