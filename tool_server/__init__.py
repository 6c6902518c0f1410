"""The tools a policy may call: their schemas, the checks on what it wrote, and the server that runs them."""
