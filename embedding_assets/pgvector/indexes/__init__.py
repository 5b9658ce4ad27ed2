"""Indexes of a generation: built, measured, tuned, and kept up."""
