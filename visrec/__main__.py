"""`python -m visrec` is the `visrec` command."""

from visrec.commands import main

if __name__ == "__main__":
    main()
