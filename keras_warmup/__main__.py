"""`python -m keras_warmup`."""

import sys

from keras_warmup.cli.main import main

sys.exit(main())
