"""How loss depends on parameters and tokens, and what a budget is best spent on."""
