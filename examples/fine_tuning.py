# %% [markdown]
# # Fine-tuning: publish only the epochs that are the best so far
#
#     python examples/fine_tuning.py
#
# A frozen base with a new head is trained; then a part of the base is unfrozen and trained on with
# a small learning rate. One callback serves both fits: it publishes `./fine_tuning/1`, `2`, ... at
# epochs whose validation loss is better than any before, warm, and keeps the newest two. Run the
# file, or paste its cells one after the other.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from sklearn.datasets import load_digits

import keras_warmup as kw

EPOCHS = 3

# %% [markdown]
# ## The base
#
# In place of a downloaded one, a small base that learns the digits 0 to 4 first.

# %%
keras.utils.set_random_seed(0)
digits = load_digits()
x, y = digits.images[..., None].astype("float32"), digits.target
is_small = y < 5

base = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 16),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
    ]
)
pretrained = keras.Sequential([base, keras.layers.Dense(5, activation="softmax")])
pretrained.compile("adam", "sparse_categorical_crossentropy")
pretrained.fit(x[is_small], y[is_small], epochs=EPOCHS, verbose=2)
base.trainable = False

image = keras.Input((8, 8, 1), name="image")
hidden = base(image, training=False)
outputs = keras.layers.Dense(5, activation="softmax", name="digit")(hidden)
model = keras.Model(image, outputs)
x, y = x[~is_small], y[~is_small] - 5

# %% [markdown]
# ## The head, then a part of the base
#
# The callback remembers the best value over both fits.

# %%
warm = kw.WarmupExport(
    "./fine_tuning/{version}",
    save_freq="epoch",
    save_best_only=True,
    max_to_keep=2,
    warmup={"batch_sizes": [1, 16]},  # those that clients send
)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x, y, epochs=EPOCHS, validation_split=0.2, verbose=2, callbacks=[warm])

base.trainable = True
for layer in base.layers:
    layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
model.fit(x, y, epochs=EPOCHS, validation_split=0.2, verbose=2, callbacks=[warm])

# %%
for report in warm.reports:
    print(report.export_dir, report.proofs["serving_default"])
