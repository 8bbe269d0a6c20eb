"""Keep tensors in host memory between the forward and the backward pass."""

import weakref

import torch
from torch import Tensor


class HostOffload:
    """Copy tensors to the host and back.

    On a GPU the copies run on a stream of their own, beside the computation, and the tensor that is
    needed next is fetched ahead. On a CPU the same calls copy within the host's memory.
    """

    def __init__(self, host_device: str = "cpu") -> None:
        self._host_device = host_device
        self._stream: torch.cuda.Stream | None = None
        self._last: weakref.ref[OffloadedTensor] | None = None

    def put(self, tensor: Tensor) -> "OffloadedTensor":
        """Copy a tensor to the host.

        The caller may free the tensor at once, but must not write into it before the copy ends.
        """
        if tensor.is_cuda and self._stream is None:
            self._stream = torch.cuda.Stream(tensor.device)
        pinned = self._stream is not None
        host = torch.empty(
            tensor.shape, dtype=tensor.dtype, device=self._host_device, pin_memory=pinned
        )

        # copy after the work that is queued so far
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            host.copy_(tensor, non_blocking=True)

        offloaded = OffloadedTensor(host, tensor.device, self._last)
        self._last = weakref.ref(offloaded)
        return offloaded

    def get(self, offloaded: "OffloadedTensor") -> Tensor:
        """Return the tensor on its device. Get tensors in the opposite order of `put`.

        The tensor that was put before this one is fetched ahead if the caller still holds it.
        """
        tensor = self._fetch(offloaded)
        offloaded.back = None
        if self._stream is not None:
            torch.cuda.current_stream(tensor.device).wait_stream(self._stream)
            tensor.record_stream(torch.cuda.current_stream(tensor.device))

        # fetch ahead
        previous = None if offloaded.previous is None else offloaded.previous()
        if previous is not None:
            previous.back = self._fetch(previous)
        return tensor

    def _fetch(self, offloaded: "OffloadedTensor") -> Tensor:
        if offloaded.back is not None:
            return offloaded.back
        with torch.cuda.stream(self._stream):
            return offloaded.host.to(offloaded.device, non_blocking=True)


class OffloadedTensor:
    """One tensor on the host.

    `previous` refers to the tensor that was put before it, as long as the caller holds that one.
    `back` is its copy on the device once it has been fetched ahead.
    """

    def __init__(
        self, host: Tensor, device: torch.device, previous: "weakref.ref[OffloadedTensor] | None"
    ) -> None:
        self.host, self.device, self.previous = host, device, previous
        self.back: Tensor | None = None
