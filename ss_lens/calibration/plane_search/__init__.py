"""How planes are searched for: by separation, and at random with a given in-plane energy."""
