from __future__ import annotations

import threading
import time

from llama_index_colqwen.progress import tqdm
from tests.forks import in_fork, needs_fork


@needs_fork
def test_process_forked_while_a_thread_draws_a_bar_draws_its_own_and_leaves_the_parents_alone() -> None:
    drawing = threading.Event()

    def draw() -> None:
        with tqdm.get_lock():
            drawing.set()
            time.sleep(0.5)

    thread = threading.Thread(target=draw)
    thread.start()
    assert drawing.wait(30)
    assert in_fork(lambda: list(tqdm([1, 2])), seconds=20) == [1, 2]
    assert list(tqdm([3])) == [3]
    thread.join()
