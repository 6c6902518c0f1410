"""Says whether the `python` tool runs on this machine: every layer of its sandbox, and its self-test. Exits 1 where it does not."""

import sys

from tool_server.python import Python
from tool_server.sandbox.layers import check, table
from tool_server.sandbox.options import PythonOptions
from tool_server.tool import ToolUnavailable


def main() -> int:
    options = PythonOptions()
    print("setup: the sandbox of the python tool")
    print(table(check(options)))
    try:
        Python().open("python").close()
    except ToolUnavailable as error:
        print(f"setup: the python tool does not start here: {str(error).splitlines()[0]}")
        print(
            "       Everything else works without it; recipes that offer it refuse to start. SECURITY.md says what each layer is for."
        )
        return 1
    print("  ok    a call ran inside, and no escape of the self-test got out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
