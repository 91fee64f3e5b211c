"""One module per question: ``measure(...)`` returns a table, ``figure(table)`` draws it."""
