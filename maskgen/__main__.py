"""``python -m maskgen``, which `accelerate launch -m maskgen train ...` runs."""

from maskgen.cli import main

main()
