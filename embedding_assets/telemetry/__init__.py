"""What the pipeline says of itself while it works, and to whom.

`events` has what is said: frozen values, made by the domain, handed to the sink that a stage's caller passes. What
becomes of them (a line of a log, a bar, a metric, a span) is a sink's affair: `log` writes waits to Python's log, the
others stand with what they write to. The domain imports none.
"""
