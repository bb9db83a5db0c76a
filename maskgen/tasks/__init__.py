"""Tasks: what is hidden in images and videos, and how results go back into them."""
