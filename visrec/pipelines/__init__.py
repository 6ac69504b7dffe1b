"""One module a job: its configuration, and what it reads, computes and writes, in order."""
