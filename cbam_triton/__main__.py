"""`python -m cbam_triton`: check this machine, `train` a small network, `see` gates, or say what runs here: `info`."""

import sys

from .demo.command import main

if __name__ == "__main__":
    sys.exit(main())
