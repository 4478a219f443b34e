"""Llama whose layers see more than the residual stream: earlier layers' outputs, values or attention scores."""
