"""Exact search: top-k with rules, ranks of held-out items, and their metrics."""
