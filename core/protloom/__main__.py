"""Runs the command line: ``python -m protloom`` is ``protloom``, which torchrun needs."""

import os
import sys

from protloom.cli import main

code = main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # everything is written and closed; at the interpreter's own exit the threads of process groups that sharded
    # parameters still hold would now and then abort a process that has succeeded ("terminate called without …")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
