"""The commands as scripts, for `ray job submit`."""
