"""What each request's completion was fused with, kept on the host: for training, and to replay after a preemption.

Shapes: R rows of a step, C completion tokens, H hidden size.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import torch


RING = 8  # copies under way at most: many more than steps under way


@dataclass
class Record:
    """
    A request's completion so far: the state and the state of the automaton behind each token, as rows of the blocks
    that they came to the host in.
    """

    rows: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    markers: list[int] = field(default_factory=list)

    def states(self, count: int) -> torch.Tensor:
        """States of the first `count` tokens, `(C, H)`."""
        return torch.stack([block[row] for block, row in self.rows[:count]])

    def cut(self, count: int) -> None:
        """Forget what lies behind the first `count` tokens."""
        del self.rows[count:], self.markers[count:]


class HostCopies:
    """A ring of pinned buffers that rows reach the host in, without waiting for the device."""

    def __init__(self, max_rows: int, width: int, dtype: torch.dtype, device: torch.device):
        self.on_host = device.type == "cpu"
        self.waiting = deque()
        self.free = []
        if not self.on_host:
            self.free = [
                (
                    torch.empty(max_rows, width, dtype=dtype, pin_memory=True),
                    torch.empty(max_rows, dtype=torch.long, pin_memory=True),
                )
                for _ in range(RING)
            ]

    def push(self, states: torch.Tensor, markers: torch.Tensor, ids):
        """Start the copy of a step's rows, `(R, H)` and `(R,)`; yields those steps whose copies had to end first."""
        if self.on_host:
            yield states.clone(), markers.tolist(), ids
            return
        if not self.free:
            yield self._finish()
        buffers = self.free.pop()
        for buffer, rows in zip(buffers, (states, markers)):
            buffer[: len(rows)].copy_(rows, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.waiting.append((event, buffers, ids))

    def flush(self):
        """Yields all steps that are still under way."""
        while self.waiting:
            yield self._finish()

    def _finish(self):
        event, buffers, ids = self.waiting.popleft()
        event.synchronize()
        states, markers = (buffer[: len(ids)].clone() for buffer in buffers)
        self.free.append(buffers)
        return states, markers.tolist(), ids


class RecordStore:
    """
    Records by request id. A request that has left its slot may come back from a preemption: its record stays until it
    is taken (`keeps`), or among those of the last `spare` requests that have left.

    Args:
        copies ([`HostCopies`]): the way to the host.
        spare (`int`): records of requests that have left.
        keeps (`bool`, *optional*, defaults to `False`): keep all records until they are taken.
    """

    def __init__(self, copies: HostCopies, spare: int, keeps: bool = False):
        self.copies, self.spare, self.keeps = copies, spare, keeps
        self.live: dict[str, Record] = {}
        self.left: OrderedDict[str, Record] = OrderedDict()

    def push(self, states: torch.Tensor, markers: torch.Tensor, ids: list[str | None]) -> None:
        """Record a step's rows; the id is None where a row drew no token."""
        self._add(self.copies.push(states, markers, ids))

    def _add(self, steps):
        for states, markers, ids in steps:
            for row, (marker, request_id) in enumerate(zip(markers, ids)):
                record = self.live.get(request_id) or self.left.get(request_id)
                if record is not None:
                    record.rows.append((states, row))
                    record.markers.append(marker)

    def begin(self, request_id: str, count: int) -> Record:
        """
        The record of a request that takes a slot with `count` known completion tokens.

        Raises:
            `RuntimeError`: if it comes back and its record is gone.
        """
        if count:  # else nothing is waited for
            self._add(self.copies.flush())
        record = self.left.pop(request_id, None) or self.live.get(request_id) or Record()
        if len(record.markers) < count:
            raise RuntimeError(
                f"The request {request_id} comes back with {count} completion tokens, and thinking states of "
                f"{len(record.markers)} are recorded. Its completion cannot be computed again. Give the engine more "
                "memory for its cache (fewer preemptions), or lower `max_num_seqs`."
            )
        record.cut(count)
        self.live[request_id] = record
        return record

    def end(self, request_id: str) -> None:
        """A request has left its slot: for good, or to come back."""
        record = self.live.pop(request_id, None)
        if record is None:
            return
        self.left[request_id] = record
        while not self.keeps and len(self.left) > self.spare:
            self.left.popitem(last=False)

    def take(self, lengths: dict[str, int], width: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """
        States `(C, H)` and states of the automaton `(C,)` of finished requests by id, of so many tokens each. All
        records of requests that have left are dropped, and those that were taken.

        Args:
            lengths (`dict[str, int]`): completion tokens by the id that the caller of vLLM knows.
            width (`int`): H, for a completion without tokens.

        Raises:
            `KeyError`: for a request without a record, or with a shorter one.
        """
        self._add(self.copies.flush())
        # The last requests of all keep their slots until others come
        held = {name: key for key in (*self.left, *self.live) for name in (key, outer_id(key))}
        taken = {}
        for name, count in lengths.items():
            key = held.get(name)
            record = self.left.pop(key, None) or self.live.pop(key, None)
            if record is None or len(record.markers) < count:
                found = "none" if record is None else len(record.markers)
                raise KeyError(
                    f"{count} thinking states of the request {name!r} were asked for, and {found} are recorded. "
                    "Switch recording on before the requests, and take each request once."
                )
            states = record.states(count) if count else torch.empty(0, width)
            taken[name] = states, torch.tensor(record.markers[:count], dtype=torch.long)
        self.left.clear()
        return taken

    def clear(self) -> None:
        """Drop the records of all requests that have left."""
        self._add(self.copies.flush())
        self.left.clear()


def outer_id(request_id: str) -> str:
    """The id that a caller of vLLM knows, from the one inside, which has 8 random characters behind a hyphen."""
    return request_id[:-9] if request_id[-9:-8] == "-" else request_id
