"""Lists for every query: scoring, lists carried over from the last publication, read-back."""
