"""Rank files merged: bit for bit what one process would have saved, or refused."""
