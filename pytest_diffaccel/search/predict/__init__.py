"""Models of cost and of loss: what a few measurements say of all candidates."""
