"""Which trials go on: asynchronous successive halving on the non-dominated rank. Plain numbers, no framework."""
