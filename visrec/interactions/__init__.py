"""Interactions as arrays: coded ids in time order, and the leakage-free split."""
