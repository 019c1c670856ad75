"""Processes that a stage has beside itself."""

import os
import threading
import time


def end_with_the_parent(parent: int) -> None:
    """First in such a process: it ends when the stage does, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
