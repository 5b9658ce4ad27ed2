"""A worker process: orders come as lines on its standard input, answers go out as lines.

It ends with its input, in the middle of a task too: whoever has sent that is gone then, and a part is written whole or
not at all.
"""

import os
import sys
import threading
from queue import SimpleQueue

from embedding_assets.work.tasks import answered


def main() -> None:
    """Do one order after the other."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # whatever is printed must not stand among the answers
        orders: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=_read, args=(orders,), daemon=True).start()
        while True:
            answers.write(answered(orders.get()) + b"\n")
            answers.flush()


def _read(orders: SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        orders.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
