"""One training loop for every stage; EMA, checkpoints, exact resume."""
