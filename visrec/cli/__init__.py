"""The command line: flags and YAML to a configuration, the Ray session, progress, exit codes."""
