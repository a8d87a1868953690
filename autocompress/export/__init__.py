"""From a network to the file that ships: fold, trace, quantize activations, pack, check."""
