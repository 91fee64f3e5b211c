"""The layout in which the authors of arXiv 2601.19375 publish a calibration."""
