"""What the pipeline says of itself while it works, and to whom.

`events` has what is said: frozen values, made by the domain, handed to the sink that a stage's caller passes. What
becomes of them (a line of a log, a bar, a metric, a span) is a sink's affair: it stands with what it writes to, and the
domain imports none.
"""
