# %% [markdown]
# # A model of strings and numbers, and all four kinds of requests
#
#     python examples/request_kinds.py
#
# Trains on scikit-learn's iris table (real data, no download; the species is its string column)
# to predict the petal width, and publishes `./iris/1` with a Predict, a Classify and a Regress
# signature that read serialized `tf.Example`s. The warmup file has a record for each, and a
# MultiInference over the last two: its Examples are built from the batches that the model was
# trained on. Run the file, or paste its cells one after the other.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from rich import print
from sklearn.datasets import load_iris

import keras_warmup as kw

# %% [markdown]
# ## Data
#
# `x` is a dict of columns, each [150, 1]: three of float32, and `species` of strings.

# %%
NUMBERS = ["sepal_length", "sepal_width", "petal_length"]
SPECIES = ["setosa", "versicolor", "virginica"]

table = load_iris()
x = {name: table.data[:, [index]].astype("float32") for index, name in enumerate(NUMBERS)}
x["species"] = table.target_names[table.target][:, None]
y = table.data[:, 3:].astype("float32")
# fit takes strings from a tf.data.Dataset, not from NumPy.
train = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(y), seed=0).batch(32)

# %% [markdown]
# ## A model

# %%
inputs = {name: keras.Input((1,), name=name) for name in NUMBERS}
inputs["species"] = keras.Input((1,), name="species", dtype="string")
lookup = keras.layers.StringLookup(vocabulary=SPECIES, output_mode="one_hot")
joined = keras.layers.Concatenate()(
    [lookup(inputs["species"]), *(inputs[name] for name in NUMBERS)]
)
hidden = keras.layers.Dense(16, activation="relu")(joined)
model = keras.Model(inputs, keras.layers.Dense(1, name="petal_width")(hidden))
model.compile("adam", "mse")

# %% [markdown]
# ## Its signatures
#
# `SPEC` says how the Examples are parsed. The classifier has no weights of its own: petals under
# 1 cm are narrow.

# %%
WIDE_CM = 1.0
SPEC = {
    "species": tf.io.FixedLenFeature([], tf.string),
    **{name: tf.io.FixedLenFeature([], tf.float32) for name in NUMBERS},
}


def write(model, export_dir):
    """Writes the SavedModel: the model's outputs, scores by class, and the number itself."""
    width = model.output
    scores = keras.ops.softmax(keras.ops.concatenate([WIDE_CM - width, width - WIDE_CM], axis=-1))
    classifier = keras.Model(model.input, scores)
    classes = ["narrow", "wide"]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serving_default", kw.endpoints.predict_examples(model, SPEC))
    archive.add_endpoint("classification", kw.endpoints.classify(classifier, SPEC, classes))
    archive.add_endpoint("regression", kw.endpoints.regress(model, SPEC))
    archive.write_out(export_dir, verbose=False)


# %% [markdown]
# ## Train it, and export it warm
#
# `kinds` asks for all four kinds of requests. `method_name` gives each signature the method name
# of its kind, for servers that check it.

# %%
warm = kw.WarmupExport(
    "./iris/{version}",
    export_fn=write,
    warmup={
        "kinds": ["predict", "classify", "regress", "multi_inference"],
        "method_name": True,
    },
)
model.fit(train, epochs=3, verbose=2, callbacks=[warm])
report = warm.reports[-1]
print(report)

# %% [markdown]
# ## Look at it, and verify it
#
# `inspect` shows what the string inputs read and which requests can reach each signature.

# %%
print(kw.inspect(report.export_dir))
print(kw.verify(report.export_dir))
