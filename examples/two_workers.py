"""Two workers train one model; the chief publishes it warm.

    python examples/two_workers.py [DIRECTORY]

starts both workers on this machine. In a cluster,
`TF_CONFIG` names the worker, and each machine runs `train` alone. Keras 3 does not support
`MultiWorkerMirroredStrategy`, so this is tf_keras.

Each worker gets the same callback. All take part in the save, since they read the moving statistics
of BatchNormalization together; the warmup records hold rows that the chief trained on.
"""

import argparse
import json
import os
import socket
import subprocess
import sys

WORKERS = 2


def train(export_dir: str) -> None:
    """Trains on this worker's part of the batches."""
    import numpy as np
    import tensorflow as tf
    import tf_keras

    import keras_warmup as kw

    strategy = tf.distribute.MultiWorkerMirroredStrategy()  # first: it starts the cluster
    tf_keras.utils.set_random_seed(0)
    with strategy.scope():
        model = tf_keras.Sequential(
            [
                tf_keras.Input((20,), name="features"),
                tf_keras.layers.Dense(32, activation="relu"),
                tf_keras.layers.BatchNormalization(),
                tf_keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
        model.compile("adam", "binary_crossentropy")
    features = np.random.default_rng(0).random((1024, 20), dtype=np.float32)
    labels = (features.sum(axis=1) > 10).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices((features, labels)).shuffle(1024, 0).batch(64)
    export = kw.WarmupExport(f"{export_dir}/{{version}}")
    model.fit(batches, epochs=2, verbose=0, callbacks=[export])

    worker = strategy.cluster_resolver.task_id
    checksum = sum(float(np.abs(weights).sum()) for weights in model.get_weights())
    print(f"worker {worker}: weights {checksum:.6f}, published {len(export.reports)}")


def start_workers(export_dir: str) -> int:
    """Starts the workers as processes of this machine, and waits for them."""
    cluster = {"worker": [f"localhost:{_free_port()}" for _ in range(WORKERS)]}
    processes = []
    for index in range(WORKERS):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(task)}
        command = [sys.executable, __file__, export_dir]
        processes.append(subprocess.Popen(command, env=environment))
    return max(process.wait() for process in processes)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", nargs="?", default="./two_workers", help="base path (default: ./two_workers)"
    )
    directory = parser.parse_args().directory
    if "TF_CONFIG" in os.environ:
        train(directory)
    else:
        sys.exit(start_workers(directory))
