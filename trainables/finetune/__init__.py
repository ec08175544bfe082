"""Finetune of a policy's quantised network."""
