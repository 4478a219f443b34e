"""What T5 is trained on."""
