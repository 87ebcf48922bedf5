"""Features, and how much of fp32's a variant keeps: k-NN, a linear probe, cosines, attention maps."""
