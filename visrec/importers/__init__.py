"""Data sets and exports in their own formats, as the tables of a workspace."""
