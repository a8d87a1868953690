"""Facts about an artifact: its quality, bytes and latency, all taken from the file itself. No torch."""
