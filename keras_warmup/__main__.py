"""`python -m keras_warmup`."""

import sys

from keras_warmup.cli.commands import main

sys.exit(main())
