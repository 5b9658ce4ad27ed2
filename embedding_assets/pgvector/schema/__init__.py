"""What a region's database is: migrations, the models' columns, roles, and the names of tables and indexes.

Here belongs what is true of every source. What is in the tables belongs to `loading` and `publishing`. The SQL itself
is in `sql/`: migrations, the search surface, and what they lead to.
"""
