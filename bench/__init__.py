"""Side-by-side benchmarks: `make bench`, or `python -m bench chunking` for one of them."""
