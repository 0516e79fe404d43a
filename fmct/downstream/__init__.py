"""A fine-tuning run from its configuration: what every recipe in finetune/ shares."""
