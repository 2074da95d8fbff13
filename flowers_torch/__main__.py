"""`python -m flowers_torch` is the `flowers-torch` program."""

import sys

from flowers_torch.cli import main

if __name__ == "__main__":
    sys.exit(main())
