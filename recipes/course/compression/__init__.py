"""Smaller models: eight and four bits, quantisation-aware training, distillation."""
