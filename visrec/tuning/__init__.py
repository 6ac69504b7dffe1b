"""Hyperparameter search with Ray Tune: spaces as data, trials, records that survive a kill."""
