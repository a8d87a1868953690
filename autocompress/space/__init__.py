"""What can be chosen: the layers, the groups of coupled layers, and the space over them."""
