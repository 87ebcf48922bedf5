"""Time, energy and limits: how long a call takes, beside what, and what the machine did meanwhile."""
