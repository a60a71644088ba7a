"""Which requests make a model warm: the fewest, decided without running anything."""
