"""The command line, `keras-warmup`."""

from keras_warmup.cli.commands import main as main
