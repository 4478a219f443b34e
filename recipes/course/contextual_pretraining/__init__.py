"""Words in their context: ELMo, and what BERT is trained on."""
