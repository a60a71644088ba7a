"""Measures cold and warm first requests in fresh processes and on model servers."""
