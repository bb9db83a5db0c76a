"""``python -m maskgen``, for `accelerate launch -m maskgen train ...`."""

from maskgen.cli import main

main()
