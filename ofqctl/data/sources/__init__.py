"""Readers, one a kind of data: image folders, `datasets` tables (local and hub), the built-in digits."""
