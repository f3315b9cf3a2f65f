"""``python -m trimtab``."""

import sys

try:
    from trimtab.cli import main

    code = main()
except KeyboardInterrupt:  # while Python itself was still reading the program
    code = 130
# If Ctrl-C met Python while it ran a string, as the decorator of a dataclass does, CPython notes an unhandled interrupt
# and ends the process by SIGINT whatever the exit code is. The next string that it runs clears the note.
exec("")
sys.exit(code)
