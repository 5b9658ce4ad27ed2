"""Indexes of a generation: built, measured, tuned, and kept up.

Here belongs what makes searches fast, and the measure of what that costs them in recall. No row is changed here, and
nothing here keeps right rows from readers.
"""
