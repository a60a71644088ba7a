"""The command line, `keras-warmup`."""

from keras_warmup.cli.main.main import main as main
