"""`python -m firesteel` is the command `firesteel`."""

from firesteel.cli import main

if __name__ == "__main__":
    main()
