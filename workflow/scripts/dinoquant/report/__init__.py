"""What was measured, for people: the summary, the recommendation, the page and the figures."""
