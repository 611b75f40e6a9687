"""``python -m fieldring``."""

import sys

from fieldring.cli import main

if __name__ == "__main__":
    sys.exit(main())
