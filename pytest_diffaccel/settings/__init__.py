"""How options are declared, and the frozen settings that are made of them."""
