"""Documents cut into chunks: deterministic, token-exact, at the best boundary, with offsets that reproduce the text.

Here belongs everything that depends on a document's text alone. It knows no vectors and no database.
"""
