"""Checks whether a run is possible here: tries the store, asks every node, says what is missing."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    import sys

    from visrec.cli.launch import launch
    from visrec.pipelines.doctor import DoctorJob, check, main

    # The workspace may be given without its flag: `doctor.py s3://shop/visrec`.
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--workspace")
    launch(main, DoctorJob, check=check)
