"""Keep tensors in host memory between the forward and the backward pass."""

import weakref

import torch
from torch import Tensor


class HostOffload:
    """Tensors that wait on the host. On a GPU the copies run on a stream of their own, beside the computation, and
    the one that is needed next is fetched ahead; on a CPU the same calls copy within the host's memory."""

    def __init__(self, where: str = "cpu") -> None:
        self._where = where
        self._stream: torch.cuda.Stream | None = None
        self._last: weakref.ref[OffloadedTensor] | None = None

    def put(self, tensor: Tensor) -> "OffloadedTensor":
        if tensor.is_cuda and self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        pinned = self._stream is not None
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._where, pin_memory=pinned)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)
        waiting = OffloadedTensor(host, tensor.device, self._last)
        self._last = weakref.ref(waiting)
        return waiting

    def get(self, waiting: "OffloadedTensor") -> Tensor:
        """Back on the device. Tensors are wanted in the opposite order of their coming."""
        tensor = self._fetch(waiting)
        waiting.back = None
        if self._stream is not None:
            torch.cuda.current_stream(tensor.device).wait_stream(self._stream)
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
        before = None if waiting.before is None else waiting.before()
        if before is not None:
            before.back = self._fetch(before)
        return tensor

    def _fetch(self, waiting: "OffloadedTensor") -> Tensor:
        if waiting.back is not None:
            return waiting.back
        with torch.cuda.stream(self._stream):
            return waiting.host.to(waiting.device, non_blocking=True)


class OffloadedTensor:
    """One tensor on the host; `before`: the one that came before it, while someone still wants it."""

    def __init__(
        self, host: Tensor, device: torch.device, before: "weakref.ref[OffloadedTensor] | None"
    ) -> None:
        self.host, self.device, self.before = host, device, before
        self.back: Tensor | None = None
