"""The warmup file and its PredictionLogs: path, reading, writing, wire format."""
