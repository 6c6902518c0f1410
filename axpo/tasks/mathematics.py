"""Compare mathematical expressions, by math-verify in a process of its own.

What a policy wrote can keep sympy busy for ever, or Python itself: `9^{9^{9^9}}` is one
multiplication that no thread can interrupt. So the comparison runs in a child process,
`python -m axpo.tasks.mathematics`. It is killed at its deadline, and started again for the next
answer.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading

DEADLINE_S = 10.0  # of one comparison
START_S = 120.0  # until the child is ready
MEMORY = 4 << 30  # bytes of address space
_MODULE = (sys.executable, "-m", "axpo.tasks.mathematics")


class Comparer:
    """Compare expressions in one child process, one at a time."""

    def __init__(self, command: tuple[str, ...] = _MODULE, deadline_s: float = DEADLINE_S) -> None:
        self._command, self._deadline_s = command, deadline_s
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, truth: str, answer: str) -> bool:
        """Return whether the answer equals the truth.

        Raises:
            TimeoutError: the child did not reply before the deadline.
            RuntimeError: the child ended, or could not read the truth.
        """
        with self._lock:
            child = self._child or self._start()
            try:
                assert child.stdin is not None
                child.stdin.write(json.dumps([truth, answer]) + "\n")
                child.stdin.flush()
                reply = json.loads(self._read_line(child, self._deadline_s))
            except (OSError, RuntimeError, TimeoutError):
                # A late reply would be taken for that of the next comparison.
                self._end(child)
                raise
        if not isinstance(reply, bool):
            raise RuntimeError(str(reply))
        return reply

    def close(self) -> None:
        """End the child."""
        with self._lock:
            if self._child:
                self._end(self._child)

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        child = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        try:
            self._read_line(child, START_S)
        except BaseException:
            self._end(child)
            raise
        self._child = child
        return child

    def _read_line(self, child: subprocess.Popen[str], seconds: float) -> str:
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], seconds)
        if not readable:
            raise TimeoutError(f"math: no answer for {seconds:g} s")
        line = child.stdout.readline()
        if not line:
            command, status = " ".join(self._command), child.wait()
            raise RuntimeError(f"math: {command} ended with status {status}")
        return line

    def _end(self, child: subprocess.Popen[str]) -> None:
        self._child = None
        child.kill()
        child.communicate()


_comparer = Comparer()


def equal(truth: str, answer: str) -> bool:
    """Return whether the answer equals the truth; raise what `Comparer.equal` raises.

    Args:
        truth: LaTeX or plain text, without \\boxed.
        answer: likewise.
    """
    return _comparer.equal(truth, answer)


def main() -> None:
    """Reply to lines on stdin, until it ends; the child's side.

    A line is `[truth, answer]`. The reply is true, false, or a text that says what is wrong with
    the truth.
    """
    import logging
    import resource

    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # math-verify warns that it has no time limit
    # A comparison that needs more memory fails, and does not take that of the rollout worker.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        # No time limit of math-verify's own: when it ended, it would call the answer wrong.
        truth, answer = (
            parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=None)
            for text in json.loads(line)
        )
        if truth:
            reply = verify(truth, answer, timeout_seconds=None)
        else:
            reply = f"math: {line.strip()[:200]}: no expression in the question's answer"
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
