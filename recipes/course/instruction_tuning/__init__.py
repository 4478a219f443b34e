"""From a base model to an aligned one: chains, instructions, a reward model, and the table of what it brought."""
