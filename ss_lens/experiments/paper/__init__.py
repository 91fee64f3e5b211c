"""The tables of arXiv 2601.19375 and the controls that they lack, on one model."""
