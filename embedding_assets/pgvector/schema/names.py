"""The names of a generation's table and indexes: no text from outside is ever part of one."""

from psycopg import sql

from embedding_assets.snapshots.slots import Slot


def generation_table(generation: int) -> sql.Composed:
    """A generation's table, by its number."""
    return sql.SQL("embedding_assets.{}").format(sql.Identifier(f"generation_{generation}"))


def generation_index(generation: int, slot: Slot) -> sql.Composed:
    """The HNSW index of a slot on a generation's table."""
    return sql.SQL("embedding_assets.{}").format(sql.Identifier(f"generation_{generation}_{slot}"))


def words_table(generation: int) -> sql.Composed:
    """A generation's chunks as text search vectors."""
    return sql.SQL("embedding_assets.{}").format(sql.Identifier(f"generation_{generation}_words"))


def lexemes_table(generation: int) -> sql.Composed:
    """How many chunks of a generation have each lexeme."""
    return sql.SQL("embedding_assets.{}").format(sql.Identifier(f"generation_{generation}_lexemes"))
