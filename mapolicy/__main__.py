"""`python -m mapolicy` is the command line."""

from mapolicy.cli.entry import main

if __name__ == "__main__":
    main()
