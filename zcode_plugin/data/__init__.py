"""Objectives, languages, sampling, noise and batches of multitask multilingual training."""
