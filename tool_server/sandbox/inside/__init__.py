"""What runs inside the jail, in the toolbox's interpreter: standard library, the toolbox's packages and nothing of AXPO."""
