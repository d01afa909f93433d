"""Hyper-parameter search: trials of training, each in a driver process of its own. See `job`."""
