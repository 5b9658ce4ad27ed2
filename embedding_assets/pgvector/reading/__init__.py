"""What is asked of a region's database: the nearest chunks, and what it serves."""
