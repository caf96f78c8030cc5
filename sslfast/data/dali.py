"""Views rendered by NVIDIA DALI: the same result as `sslfast.data.render` up to rounding.

Images come as pixels or as the content of their files; on a GPU, files are decoded and views made there.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, math, pipeline_def, types
from torch import Tensor

from sslfast.data.drawing import ViewParameters
from sslfast.data.render import LUMA, Images, blur_radius
from sslfast.data.views import ViewGroup, ViewPolicy

Job = tuple[Images, Sequence[ViewParameters]]
"""B images, or the contents of their files as (bytes,) uint8, and the parameters of each group."""

SHARPEST = 1e-3
"""Standard deviation, in pixels, of a blur that changes nothing."""


class DaliRenderer:
    """Renders a stream of batches with one DALI pipeline, ahead of the reader.

    Args:
        groups: the views of an image.
        sizes: side of the views of each group, in pixels.
        batch_size: images of the largest batch that will come.
        threads: of the pipeline.
        device: ``cpu``, or the ``cuda`` device whose memory the views are left in.
        encoded: whether images come as the content of their files.
    """

    def __init__(
        self,
        groups: Sequence[ViewGroup],
        sizes: Sequence[int],
        batch_size: int,
        threads: int,
        device: torch.device,
        encoded: bool = False,
    ) -> None:
        self.groups = tuple(groups)
        self.sizes = tuple(sizes)
        self.batch_size = batch_size
        self.threads = threads
        self.device = device
        self.encoded = encoded

    def stream(self, jobs: Iterator[Job]) -> Iterator[tuple[Tensor, ...]]:
        """Map batches to one tensor (V x B, 3, size, size) in [0, 1] a group, view v of image b in row v x B + b.

        The pipeline is always one or two batches ahead: ``jobs`` is read before the views before it were taken.

        Raises:
            RuntimeError: DALI cannot decode a file of this batch or of one of the next two; the stream has ended.
        """
        pipeline = self._pipeline(jobs)
        pipeline.build()
        while True:
            try:
                found = pipeline.run()
            except StopIteration:
                return
            done = 0
            views = []
            for group in self.groups:
                count = len(group.policies)
                parts = [self._tensor(one) for one in found[done : done + count]]
                views.append(torch.cat(parts).clamp_(0, 1))
                done += count
            yield tuple(views)

    def __call__(self, images: Images, parameters: Sequence[ViewParameters]) -> tuple[Tensor, ...]:
        """Render one batch; a stream is faster."""
        (views,) = self.stream(iter([(images, parameters)]))
        return views

    def _tensor(self, views: Any) -> Tensor:
        if self.device.type == "cuda":
            return torch.from_dlpack(views.as_tensor())  # type: ignore[attr-defined]
        return torch.from_numpy(views.as_array())

    def _pipeline(self, jobs: Iterator[Job]):  # type: ignore[no-untyped-def]
        on_gpu = self.device.type == "cuda"
        slots = [
            (policy, size) for group, size in zip(self.groups, self.sizes, strict=True) for policy in group.policies
        ]

        def feed() -> tuple[Any, ...]:
            images, drawn = next(jobs)
            fed: list[Any] = [np.ascontiguousarray(images) if isinstance(images, np.ndarray) else list(images)]
            for group, parameters in zip(self.groups, drawn, strict=True):
                count = len(images)
                for view, policy in enumerate(group.policies):
                    fed += _arguments(policy, parameters.rows(slice(view * count, (view + 1) * count)))
            return tuple(fed)

        @pipeline_def(
            batch_size=self.batch_size,
            num_threads=self.threads,
            device_id=(self.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=2,
        )
        def views():  # type: ignore[no-untyped-def]
            numbers = [len(_names(policy)) for policy, _ in slots]
            images, *arguments = fn.external_source(feed, num_outputs=1 + sum(numbers), batch=True)
            if self.encoded:
                images = fn.decoders.image(images, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
            else:
                images = fn.reshape(images, layout="HWC")
                images = images.gpu() if on_gpu else images
            outputs = []
            for (policy, size), number in zip(slots, numbers, strict=True):
                of_view = dict(zip(_names(policy), arguments[:number], strict=True))
                arguments = arguments[number:]
                outputs.append(_view(images, of_view, policy, size, on_gpu))
            return tuple(outputs)

        return views()


def _names(policy: ViewPolicy) -> list[str]:
    """List what a view of this policy is told."""
    found = ["start", "shape", "flip", "vertical_flip", "scale", "shift", "saturation", "hue"]
    found += ["matrix"] if policy.distort else []
    found += ["sigma"] if policy.blur else []
    found += ["solarise"] if policy.solarise else []
    return found + (["anchor", "extent"] if policy.erase else [])


def _arguments(policy: ViewPolicy, drawn: ViewParameters) -> list[NDArray[Any]]:
    matrix = np.concatenate([drawn.perspective, np.ones((len(drawn), 1), np.float32)], axis=1).reshape(-1, 3, 3)
    values = {
        "start": drawn.box[:, :2],
        "shape": drawn.box[:, 2:],
        "flip": drawn.flip,
        "vertical_flip": drawn.vertical_flip,
        "scale": drawn.brightness * drawn.contrast,
        "shift": drawn.brightness * (1 - drawn.contrast),
        "saturation": drawn.saturation,
        "hue": drawn.hue,
        "matrix": matrix,
        "sigma": np.where(drawn.blur > 0, drawn.blur, np.float32(SHARPEST)),
        "solarise": drawn.solarise.astype(np.float32),
        "anchor": drawn.erase[:, :2].astype(np.float32),
        "extent": drawn.erase[:, 2:].astype(np.float32),
    }
    return [np.ascontiguousarray(values[name]) for name in _names(policy)]


def _view(images: Any, told: dict[str, Any], policy: ViewPolicy, size: int, on_gpu: bool) -> Any:
    """Add the steps of one view to the graph; what is drawn for it stays on the CPU but where pixels meet it."""

    def there(value: Any) -> Any:
        return value.gpu() if on_gpu else value

    x = fn.slice(
        images, start=told["start"], shape=told["shape"], axes=[0, 1], out_of_bounds_policy="pad", fill_values=0
    )
    x = fn.resize(x, size=[size, size], interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
    x = fn.flip(x, horizontal=told["flip"], vertical=told["vertical_flip"])
    luma = types.Constant(np.array(LUMA, np.float32))
    grey = fn.reductions.sum(fn.reductions.mean(x, axes=[0, 1]) * there(luma))
    # b (g + c (x - g)): brightness first, then contrast about the mean grey.
    x = x * there(told["scale"]) + there(told["shift"]) * grey
    x = fn.hsv(x, saturation=told["saturation"], hue=told["hue"], dtype=types.FLOAT)
    if policy.distort or policy.blur or policy.solarise:
        x = math.clamp(x, 0.0, 255.0)
    if policy.distort:
        x = fn.experimental.warp_perspective(x, matrix=told["matrix"], fill_value=0.0, pixel_origin="corner")
    if policy.blur:
        x = fn.gaussian_blur(x, window_size=2 * blur_radius(size) + 1, sigma=told["sigma"])
    if policy.solarise:
        x = x + there(told["solarise"]) * fn.cast(x >= 127.5, dtype=types.FLOAT) * (255.0 - 2.0 * x)
    if policy.erase:
        fill = 255.0 * policy.fill
        x = fn.erase(x, anchor=told["anchor"], shape=told["extent"], axis_names="HW", fill_value=fill)
    return fn.crop_mirror_normalize(x, mean=[0.0] * 3, std=[255.0] * 3, dtype=types.FLOAT, output_layout="CHW")
