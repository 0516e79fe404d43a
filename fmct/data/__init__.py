"""From a store to batches: views for pretraining, labelled windows for fine-tuning."""
