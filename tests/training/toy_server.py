"""Starts toy runs quickly: a process that has imported all they need, and forks one for each line that it reads.

A line is a JSON object: `arguments` of toy_run.py, `environment` to add, and `out` and `err`, files for what it writes.
The answer is the run's process id; a line that holds a process id is answered by its exit code (the number of a
signal, negative, where one killed it), by null if it has not ended yet. SIGABRT makes a run write where it stands.
The end of the input ends the server.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
import traceback

import accelerate  # noqa: F401 - imported once, before the forks
import safetensors.torch  # noqa: F401
import torch._dynamo  # noqa: F401
import toy_run

import throughtime.training.curve  # noqa: F401


def begin(order: dict[str, object]) -> int:
    """Fork a run; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(str(order[name]), os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        faulthandler.enable()
        os.environ.update(order["environment"])  # type: ignore[call-overload]
        sys.argv = ["toy_run.py", *order["arguments"]]  # type: ignore[misc]
        code = toy_run.main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int | None:
    """Its exit code, if there is one yet."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def main() -> None:
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(begin(order) if isinstance(order, dict) else ended(order)), flush=True)


if __name__ == "__main__":
    main()
