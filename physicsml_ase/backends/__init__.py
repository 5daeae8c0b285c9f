"""Faster ways to evaluate a potential, each checked against the plain one when it is made."""
