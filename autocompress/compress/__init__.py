"""From a plan to a smaller network: which channels go, removing them and blocks, and rounding weights."""
