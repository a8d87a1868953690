"""Winning accuracy back: the data a study works on, distillation, and the one training loop."""
