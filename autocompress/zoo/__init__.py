"""Networks and data of the built-in studies."""
