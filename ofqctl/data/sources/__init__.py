"""Readers, one for each kind of data: image folders, `datasets` tables (local or on the hub), the built-in digits."""
