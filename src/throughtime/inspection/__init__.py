"""To look at: the gradient on its way through time, unfolded graphs, what influences what."""
