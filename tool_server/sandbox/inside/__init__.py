"""The code that runs inside the jail, in the toolbox's interpreter.

It may import the standard library and the packages of the toolbox, and nothing of AXPO: the jail
shows this folder as `/jail/inside`, and nothing else of the project.

Start reading at `zygote.py`, the first process of a jail. For each call it forks a child.
`confine.py` isolates the child, `execute.py` runs the policy's code in it, `figures.py` and
`tracebacks.py` are what the policy sees of images and errors. `escapes.py` is the self-test.
`protocol.py` says what the server and the jail send to each other; the server reads it, too.
"""
