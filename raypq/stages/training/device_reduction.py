"""Training by reduction on a torch device: several batches are in flight at a time."""

from __future__ import annotations

from collections.abc import Iterator

from raypq.data.prefetch import in_flight
from raypq.kernels.device import BATCHES_IN_FLIGHT, own_stream, synchronise
from raypq.methods.base import ReductionMethod, State, Stats, TrainBatch
from raypq.methods.support.device_rows import DeviceRows, Parameters


def accumulate_on_device(
    method: ReductionMethod, state: State, batches: Iterator[TrainBatch], parameters: Parameters
) -> Stats:
    """The statistics of batches, of which several are in flight on the device of the parameters;
    they merge in order."""
    device = parameters.device

    def accumulate(batch: TrainBatch) -> Stats:
        with own_stream(device):
            return method.accumulate(state, batch, DeviceRows.of(batch.X, parameters))

    stats = Stats()
    for part in in_flight(accumulate, batches, BATCHES_IN_FLIGHT):
        stats.merge(part)
        synchronise(device)
    return stats.on_host()
