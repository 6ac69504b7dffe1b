"""How good models are: exact ranks of held-out items, list metrics, intervals, the report."""
