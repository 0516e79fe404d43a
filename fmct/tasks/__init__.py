"""Downstream tasks: modules whose forward turns a batch of labelled windows into a loss."""
