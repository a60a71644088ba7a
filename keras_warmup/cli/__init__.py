"""The command line, `keras-warmup`.

Arguments come in. A report goes to stdout, as text or JSON; progress, warnings and errors go to
stderr; the exit code says whether the command succeeded. Importing it does not import TensorFlow.
"""

from keras_warmup.cli.commands import main as main
