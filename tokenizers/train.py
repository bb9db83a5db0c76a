"""Train a tokenizer from a YAML file. maskgen.training holds the loop, its settings and exact resume.

python tokenizers/train.py tokenizer/emoji training.steps=2000 name=mine
accelerate launch --num_processes 8 tokenizers/train.py configs/tokenizer/imagenet256.yaml
"""

import argparse

from maskgen.training.run import run_config

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, or its name in configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_args()
    print(run_config(arguments.config, arguments.overrides))
