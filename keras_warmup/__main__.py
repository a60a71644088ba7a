"""Runs the command line: `python -m keras_warmup`."""

import sys

from keras_warmup.cli import main

sys.exit(main())
