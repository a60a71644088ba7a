"""Builders of models, SavedModels and rows that more than one test module uses."""

from __future__ import annotations
