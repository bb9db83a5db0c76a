"""Stage 2: transformers that map tokens and a mask to predictions and features."""
