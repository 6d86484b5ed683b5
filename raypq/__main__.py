"""``python -m raypq``: the command line, if its script is not on the path."""

from raypq.cli import main

if __name__ == "__main__":
    main()
