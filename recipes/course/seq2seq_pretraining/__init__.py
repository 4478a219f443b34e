"""What T5 is trained on, and how a model with a view of both sides fills gaps."""
