"""Search for a prompt of real tokens, guided by gradients."""
