"""The figures for print, by Matplotlib: two widths, fonts embedded, readable in grey, no browser.

A module that is named as one of :mod:`analyses.run_figures` draws the same table.
"""
