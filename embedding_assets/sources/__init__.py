"""Documents from where they lie: listed, looked at for changes, read, validated, normalised to text and hashed.

Here belongs what a kind of source is. What is done with the text belongs to `chunking`.
"""
