"""Whole experiments: from NIH's folder to one page of figures. See `chexspark.experiment.reproduce`."""
