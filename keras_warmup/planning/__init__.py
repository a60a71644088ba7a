"""Decides which requests make a model warm: the fewest, without running anything.

In come signatures with rows bound to their inputs and facts about their graphs, out goes a `Plan`
of `PlannedRequest`s, which hold no copies of the rows.
"""
