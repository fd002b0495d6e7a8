"""Command line as `python -m deformdetr`, which launchers of several processes need."""

import sys

from deformdetr.cli import main

if __name__ == "__main__":
    sys.exit(main())
