"""Warms a SavedModel: candidates -> plan -> draft -> replay -> proof."""
