"""What to try next, and what is not worth training."""
