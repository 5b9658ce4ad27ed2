"""All that knows Dagster: assets and their checks, what starts runs, and the driver that runs them from here.

`build` puts it together. Assets are thin: the work is in the domain packages, what crosses them in `operations`.
"""
