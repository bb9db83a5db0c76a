"""Stage 2: tokens + plan -> predictions and features."""
