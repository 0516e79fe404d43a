"""`python -m fmct VERB …`: the command line, for launchers that start a module (torchrun, deepspeed)."""

import sys

from fmct.cli import main

if __name__ == "__main__":
    sys.exit(main())
