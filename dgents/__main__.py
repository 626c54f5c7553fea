"""`python -m dgents` is `dgents`."""

import sys

from dgents.cli import main

if __name__ == "__main__":
    sys.exit(main())
