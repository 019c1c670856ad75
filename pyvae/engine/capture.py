"""Steps as one CUDA graph."""

from collections.abc import Callable

import torch


class Capture:
    """``count`` calls of ``step`` in one CUDA graph: the launches of all of them cost what one launch costs.

    What is called must have run before on the current stream, so that its kernels are compiled and autograd's nodes
    belong to that stream; whatever it reads and changes must be tensors that stay where they are.
    """

    def __init__(self, step: Callable[[], None], count: int) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: threads that read images or write checkpoints may go on
        with torch.cuda.graph(
            self._graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            for _ in range(count):
                step()

    def replay(self) -> None:
        """Run them, without waiting."""
        self._graph.replay()
