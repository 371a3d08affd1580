"""`python -m btray`."""

from btray.cli import main

if __name__ == "__main__":
    main()
