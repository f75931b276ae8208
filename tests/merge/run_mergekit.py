"""Every recipe *.yml of the folders merged by the mergekit package into a folder of the recipe's name."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

for recipe in [recipe for folder in sys.argv[1:] for recipe in sorted(Path(folder).glob("*.yml"))]:
    config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(config, str(recipe.with_suffix(".mergekit")), options)
