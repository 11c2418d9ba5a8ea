"""How the states of the sites become one: a strategy a file."""
