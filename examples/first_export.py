# %% [markdown]
# # A first export
#
#     python examples/first_export.py
#
# Trains a small CNN on scikit-learn's digits, exports it with a warmup file to
# `./first_export/1`, looks at it, verifies it as a model server would, and measures the first
# request. Run the file, or paste its cells one after the other.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from rich import print
from sklearn.datasets import load_digits

import keras_warmup as kw

# Fresh processes for each figure of the last cell. No gain is claimed of fewer than three.
PROCESSES = 3

# %% [markdown]
# ## A model
#
# `x` is float32 [1797, 8, 8, 1], `y` the digit. The last 297 rows are kept for measuring.

# %%
digits = load_digits()
x, y = digits.images[..., None].astype("float32"), digits.target

image = keras.Input((8, 8, 1), name="image")
hidden = keras.layers.Rescaling(1 / 16)(image)
hidden = keras.layers.Conv2D(32, 3, activation="relu")(hidden)
hidden = keras.layers.GlobalAveragePooling2D()(hidden)
model = keras.Model(image, keras.layers.Dense(10, activation="softmax", name="digit")(hidden))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

# %% [markdown]
# ## Train it, and export it warm
#
# The callback keeps a few of the batches that `fit` trains on. At the end it exports the model,
# writes the warmup file, replays it, compares the outputs with the model's own, and publishes the
# directory.

# %%
warm = kw.WarmupExport("./first_export/{version}")
model.fit(x[:1500], y[:1500], epochs=3, batch_size=32, verbose=2, callbacks=[warm])
report = warm.reports[-1]
print(report)

# %% [markdown]
# ## Look at it
#
# `inspect` runs nothing. This model convolves, so `inspect` recommends records of the batch sizes
# that clients send: `warmup={"batch_sizes": [...]}`.

# %%
print(kw.inspect(report.export_dir))

# %% [markdown]
# ## Verify it
#
# What a model server does with the warmup file when it loads the model, without a server.

# %%
verified = kw.verify(report.export_dir)
print(verified)

# %% [markdown]
# ## Measure it
#
# The first request in fresh processes, without and with the warmup file.

# %%
print(kw.benchmark(report.export_dir, data=x[1500:], processes=PROCESSES))
