"""``python -m trimtab``."""

import sys

try:
    from trimtab.cli import main

    code = main()
except KeyboardInterrupt:  # while Python itself was still reading the program
    code = 130
sys.exit(code)
