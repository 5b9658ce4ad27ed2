"""What a region's database is: migrations, the models' columns, roles, and the names of tables and indexes."""
