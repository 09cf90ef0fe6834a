"""Optimizers against each other within one budget: race divides it and decides, arm_run is one turn of one of them."""
