"""Search as a tool: one interface over an embedded local index and Tavily, and search of captioned images."""
