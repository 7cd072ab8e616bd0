"""The images of a microbatch, read and sent to the device while the step before is computed.

What is read is a function of the `Request` alone. The next one is guessed, and read again if the
guess was wrong: at the end of a stage, after a return to a checkpoint. So nothing depends on what a
feed has read ahead, and a checkpoint knows of steps that were made, not of these. Images that are
streamed are decoded by processes further ahead (`data.ahead`), on a CPU, too.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from underpaint.training.stages import PreparedStage
from underpaint.training.training_set import Gathered

Sent = tuple[Gathered, torch.cuda.Event | None]  # the event: when it is there


class Request(NamedTuple):
    """What the images of a microbatch follow from."""

    stage: PreparedStage
    rate: float  # of the masks
    position: int  # in the stage
    images: int
    seed: int
    stride: int = 0  # images from this microbatch to the next one of this process

    def same(self, other: "Request") -> bool:
        """Whether they are answered alike."""
        return self.stage is other.stage and self[1:] == other[1:]

    def read(self) -> Gathered:
        """The images, on the CPU."""
        ids = self.stage.order.at(self.position, self.images)
        augment, pixels = self.stage.augment(self.position), None
        if self.stage.ahead is not None and self.stride:
            pixels = self.stage.ahead.take(self.position, self.images, self.stride)
        return self.stage.training_set.gather(ids, self.rate, augment, self.seed, pixels)


class Feed:
    """One thread that reads ahead; of a CPU, whose cores compute the steps, none."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ahead = device.type == "cuda"
        # in that of the steps a copy would wait for those already asked for
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._reader: ThreadPoolExecutor | None = None
        self._next: tuple[Request, Future[Sent]] | None = None
        self._last: Request | None = None

    def take(self, request: Request, then: Request | None = None) -> Gathered:
        """The images asked for, on the device; those of `then` are read from now on.

        Raises what reading raises, of what is asked for.
        """
        self._last = request
        if not self.ahead:
            return request.read().to(self.device)
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, "underpaint-feed")
        if self._next is None or not self._next[0].same(request):
            # behind the wrong guess, if there is one: an order is read by one thread at a time
            self._next = request, self._reader.submit(self._sent, request)
        (_, found), self._next = self._next, None
        gathered, event = found.result()
        if then is not None:
            self._next = then, self._reader.submit(self._sent, then)
        if event is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(event)
            for tensor in gathered.tensors():
                tensor.record_stream(now)  # whose memory is free only when this stream is done
        return gathered

    def close(self) -> None:
        """End thread and processes; what they have read ahead is forgotten."""
        self._next = None
        if self._reader is not None:
            self._reader.shutdown(cancel_futures=True)
            self._reader = None
        if self._last is not None and self._last.stage.ahead is not None:
            self._last.stage.ahead.close()

    def _sent(self, request: Request) -> Sent:
        gathered = request.read()
        if self._stream is None:
            return gathered.to(self.device), None
        with torch.cuda.stream(self._stream):  # and on its device
            return gathered.pinned().to(self.device), self._stream.record_event()
