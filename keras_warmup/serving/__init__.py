"""What TensorFlow Serving does with a model and its warmup file: rules, Session, replay."""
