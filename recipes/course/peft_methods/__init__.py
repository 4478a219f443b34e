"""Parameter-efficient fine-tuning beyond what PEFT has, and the comparison of its methods."""
