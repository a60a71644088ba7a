"""Train a VAE, serve its encoder and its decoder.

    python examples/vae.py [DIRECTORY]

Trains a small variational autoencoder on scikit-learn's digits. The trained model has no call, so
its parts are exported: at the end of training the encoder, with rows that `fit` trained on, then
the decoder, with codes that the encoder made.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from rich.console import Console
from sklearn.datasets import load_digits

import keras_warmup as kw

CODE_SIZE = 4


class VAE(keras.Model):
    """An encoder and a decoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        image = keras.Input((8, 8, 1), name="image")
        hidden = keras.layers.Conv2D(16, 3, activation="relu")(image)
        hidden = keras.layers.Flatten()(hidden)
        mean = keras.layers.Dense(CODE_SIZE)(hidden)
        log_variance = keras.layers.Dense(CODE_SIZE)(hidden)
        self.encoder = keras.Model(image, {"mean": mean, "log_variance": log_variance})

        code = keras.Input((CODE_SIZE,), name="code")
        hidden = keras.layers.Dense(64, activation="relu")(code)
        hidden = keras.layers.Dense(64, activation="sigmoid")(hidden)
        self.decoder = keras.Model(code, keras.layers.Reshape((8, 8, 1), name="image")(hidden))
        self.total_loss = keras.metrics.Mean(name="loss")

    def train_step(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Trains both parts on a batch of images."""
        with tf.GradientTape() as tape:
            code = self.encoder(images, training=True)
            mean, log_variance = code["mean"], code["log_variance"]
            sample = mean + tf.exp(log_variance / 2) * tf.random.normal(tf.shape(mean))
            error = tf.reduce_sum((self.decoder(sample, training=True) - images) ** 2, [1, 2, 3])
            divergence = tf.reduce_sum(mean**2 + tf.exp(log_variance) - log_variance - 1, 1) / 2
            loss = tf.reduce_mean(error + 0.1 * divergence)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.total_loss.update_state(loss)
        return {"loss": self.total_loss.result()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", nargs="?", default="./vae", help="parent of the base paths (default: ./vae)"
    )
    arguments = parser.parse_args()

    images = load_digits().images[..., None].astype("float32") / 16
    vae = VAE()
    vae.compile("adam")
    warm = kw.WarmupExport(
        os.path.join(arguments.directory, "encoder", "{version}"), export_model=vae.encoder
    )
    vae.fit(images, epochs=3, batch_size=32, verbose=2, callbacks=[warm])

    # The decoder takes codes, not the images that fit trained on.
    codes = vae.encoder.predict(images[:64], verbose=0)["mean"]
    decoder = kw.export_with_warmup(
        vae.decoder, os.path.join(arguments.directory, "decoder", "{version}"), data=codes
    )
    console = Console()
    for report in (warm.reports[-1], decoder):
        console.print(report)
        console.print(kw.verify(report.export_dir))


if __name__ == "__main__":
    main()
