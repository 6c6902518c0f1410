"""Which failed tool calls are forked, how many, and the forks themselves."""
