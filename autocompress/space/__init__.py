"""What can be chosen: the layers, groups of coupled layers, residual blocks, and the space over them."""
