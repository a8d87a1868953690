"""From a plan to a smaller network: which channels go, removing them, and rounding weights."""
