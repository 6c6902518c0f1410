"""Say whether the `python` tool runs on this machine.

It prints every layer of the sandbox and runs its self-test. It exits with 1 if the tool does not
start here.
"""

import sys

from tool_server.python import Python
from tool_server.sandbox.layers import check, table
from tool_server.sandbox.options import PythonOptions
from tool_server.tool import ToolUnavailable


def main() -> int:
    """Check the sandbox and return the exit code."""
    print("setup: the sandbox of the python tool")
    print(table(check(PythonOptions())))
    try:
        # Opening a jail runs the self-test in it.
        Python().open("python").close()
    except ToolUnavailable as error:
        # The lines after the first are the table that was just printed.
        print(f"setup: the python tool does not start here: {str(error).splitlines()[0]}")
        print("       Everything else works without it; recipes that offer it refuse to start.")
        print("       SECURITY.md says what each layer is for.")
        return 1
    print("  ok    a call ran inside, and no escape of the self-test got out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
