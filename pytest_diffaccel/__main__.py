"""``python -m pytest_diffaccel``: the ``diffaccel`` command."""

import sys

from pytest_diffaccel.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
