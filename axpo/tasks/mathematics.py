"""Whether two mathematical expressions are equal, by math-verify in a process of its own.

What a policy wrote can keep sympy busy for ever, or Python itself: `9^{9^{9^9}}` is one multiplication that no thread can interrupt. So
the comparison runs in a child, `python -m axpo.tasks.mathematics`, that is killed at its deadline and started again for the next answer.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading

DEADLINE_S = 10.0
START_S = 120.0
MEMORY = 4 << 30  # bytes of address space


class Comparer:
    """One child, one comparison at a time."""

    def __init__(
        self,
        command: tuple[str, ...] = (sys.executable, "-m", "axpo.tasks.mathematics"),
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._command, self._deadline_s = command, deadline_s
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, truth: str, answer: str) -> bool:
        """Raises TimeoutError at the deadline, RuntimeError where the child ended or could not read the truth."""
        with self._lock:
            child = self._child or self._start()
            try:
                assert child.stdin is not None
                child.stdin.write(json.dumps([truth, answer]) + "\n")
                child.stdin.flush()
                reply = json.loads(self._line(child, self._deadline_s))
            except (OSError, RuntimeError, TimeoutError):
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
        child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self._line(child, START_S)
        except BaseException:
            self._end(child)
            raise
        self._child = child
        return child

    def _line(self, child: subprocess.Popen[str], seconds: float) -> str:
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"math: no answer for {seconds:g} s")
        if line := child.stdout.readline():
            return line
        raise RuntimeError(f"math: {' '.join(self._command)} ended with status {child.wait()}")

    def _end(self, child: subprocess.Popen[str]) -> None:
        self._child = None
        child.kill()
        child.communicate()


_comparer = Comparer()


def equal(truth: str, answer: str) -> bool:
    """Whether the answer equals the truth, both LaTeX or plain, without \\boxed. Raises as `Comparer.equal`."""
    return _comparer.equal(truth, answer)


def main() -> None:
    """A line `[truth, answer]` in, a line out: true, false, or a text about what is wrong with the truth."""
    import logging
    import resource

    from math_verify import parse, verify

    logging.disable(logging.WARNING)  # it warns of having no time limit
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", flush=True)
    for line in sys.stdin:
        # No time limit of math-verify's own: at its end it would call the answer wrong.
        truth, answer = (
            parse(f"\\boxed{{{text.strip().strip('$')}}}", parsing_timeout=None)
            for text in json.loads(line)
        )
        reply = (
            verify(truth, answer, timeout_seconds=None)
            if truth
            else f"math: {line.strip()[:200]}: no expression in the question's answer"
        )
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
