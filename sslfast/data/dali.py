"""Views rendered by NVIDIA DALI: the fast way, the same result as `sslfast.data.render` up to rounding."""

from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor

from sslfast.data.render import LUMA
from sslfast.data.views import ViewParameters

Job = tuple[NDArray[np.uint8], ViewParameters]


class DaliRenderer:
    """Renders a stream of batches with one DALI pipeline, ahead of the reader.

    Args:
        size: side of a view, in pixels.
        batch_size: the largest batch that will come.
        threads: of the pipeline.
        device: ``cpu``, or the ``cuda`` device whose memory the views are left in.
    """

    def __init__(self, size: int, batch_size: int, threads: int, device: torch.device) -> None:
        self.size = size
        self.batch_size = batch_size
        self.threads = threads
        self.device = device

    def stream(self, jobs: Iterator[Job]) -> Iterator[Tensor]:
        """Map batches of images (B, H, W, 3), uint8, with their parameters to views (B, 3, size, size) in [0, 1].

        The pipeline is always one or two batches ahead: ``jobs`` is read before the views before it were taken.
        """
        pipeline = self._pipeline(jobs)
        pipeline.build()
        while True:
            try:
                (views,) = pipeline.run()
            except StopIteration:
                return
            yield self._tensor(views)

    def __call__(self, images: NDArray[np.uint8], parameters: ViewParameters) -> Tensor:
        """Render one batch; a stream is faster."""
        (views,) = self.stream(iter([(images, parameters)]))
        return views

    def _tensor(self, views: object) -> Tensor:
        # The pipeline uses its buffers again, so the views are copied out of them.
        if self.device.type == "cuda":
            return torch.from_dlpack(views.as_tensor()).clone().clamp_(0, 1)  # type: ignore[attr-defined]
        return torch.from_numpy(np.array(views.as_tensor(), copy=True)).clamp_(0, 1)  # type: ignore[attr-defined]

    def _pipeline(self, jobs: Iterator[Job]):  # type: ignore[no-untyped-def]
        def feed() -> tuple[NDArray[np.generic], ...]:
            images, parameters = next(jobs)
            return np.ascontiguousarray(images), *(getattr(parameters, field.name) for field in fields(ViewParameters))

        on_gpu = self.device.type == "cuda"

        @pipeline_def(
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=2,
        )
        def views():  # type: ignore[no-untyped-def]
            images, box, flip, brightness, contrast, saturation, hue = fn.external_source(
                feed, num_outputs=1 + len(fields(ViewParameters)), batch=True
            )
            x = fn.reshape(images, layout="HWC")
            x = fn.slice(x, start=box[0:2], shape=box[2:4], axes=[0, 1])
            if on_gpu:
                x = x.gpu()
            x = fn.resize(x, size=[self.size, self.size], interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
            mean = fn.reductions.mean(x, axes=[0, 1])
            luma = types.Constant(np.array(LUMA, np.float32))
            grey = fn.reductions.sum((mean.gpu() if on_gpu else mean) * luma)
            # b (grey + c (x - grey)): brightness first, then contrast about the brightened mean grey.
            x = fn.brightness_contrast(
                x, brightness=brightness, contrast=contrast, contrast_center=grey, dtype=types.FLOAT
            )
            x = fn.hsv(x, saturation=saturation, hue=hue, dtype=types.FLOAT)
            return fn.crop_mirror_normalize(
                x, mirror=flip, mean=[0.0] * 3, std=[255.0] * 3, dtype=types.FLOAT, output_layout="CHW"
            )

        return views()
