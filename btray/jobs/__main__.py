"""`python -m btray.jobs …` is `python -m btray …` with the job's secrets looked up first."""

import sys

from btray.errors import UserError
from btray.jobs.secrets import resolve


def main() -> None:
    """Look up the secrets and run btray's command line."""
    try:
        resolve()
    except UserError as error:
        sys.stderr.write(f"btray: {error}\n")
        sys.exit(2)
    from btray.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
