"""Serves the callbacks during `fit`: samples batches, finds the best epochs, orders callbacks.

In: the model in training, its callback list and its logs. Out: a few of the batches it was trained
on (`capture.py`), and the epochs to export (`best_epoch.py`).
"""
