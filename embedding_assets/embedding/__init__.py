"""Texts in, checked unit vectors out: the embedding engine, its providers, and the table of their errors.

`models` says what a model version is bound to, `engine.embed` does the work; everything else serves those two.
Knows nothing of Dagster, stores or databases: the caller makes what is delivered durable.
"""
