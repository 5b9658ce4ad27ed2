"""Rows into tables: the choice of a way, a delta on what readers see, or a new generation aside."""
