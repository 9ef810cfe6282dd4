"""`python -m genrpc`: the command line without an installed script."""

import sys

from genrpc.cli import main

if __name__ == "__main__":
    sys.exit(main())
