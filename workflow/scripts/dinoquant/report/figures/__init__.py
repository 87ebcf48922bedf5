"""A module per figure, the table of them (`catalogue`), and what they share (`style`, `inputs`, `labels`)."""
