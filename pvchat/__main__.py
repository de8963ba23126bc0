"""`python -m pvchat` is the command `pvchat`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
