"""One file per figure: `draw(...)` turns the summary (or the audits) into a matplotlib figure."""
