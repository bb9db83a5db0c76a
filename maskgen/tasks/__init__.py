"""A task -> a canvas of tokens and a mask; and back from what was made to the image it belongs to."""
