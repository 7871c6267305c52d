"""How a client trains: optimisers, rates and losses by name, and what the path they lead says about the gradients."""
