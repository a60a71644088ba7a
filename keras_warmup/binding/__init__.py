"""Batch + signature -> {input name: array}: matching, casting, encoding to tf.Examples and images, made-up rows."""
