"""What is in a SavedModel: signatures, argument structure, graph, string inputs, twins; saving and rewriting it."""
