"""What is asked of a region's database: the nearest chunks, and what it serves.

Here belongs what changes nothing, and asks through the search surface as applications do. How well an index answers is
measured in `indexes`.
"""
