"""The pipeline of an exported folder of diffusers: images, drawn as `underpaint sample` draws.

This module is exported as one file, `pipeline.py`, with all that it uses (`bundle`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from underpaint.core import samplers, spaces
from underpaint.core.guidance import guided


class UnderpaintPipeline(DiffusionPipeline):
    """Images from noise.

    `label_names`: names of the classes, empty for a model without; `sampling`: how it draws where
    nothing else is asked for (the fields of `Sampling`).
    """

    model_cpu_offload_seq = "denoiser->vae"
    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(
        self,
        denoiser: Any,
        vae: Any,
        label_names: Any = (),
        sampling: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(denoiser=denoiser, vae=vae)
        self.register_to_config(label_names=list(label_names), sampling=sampling or {})

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        labels: Sequence[str | int] | str | int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **sampling: Any,
    ) -> Any:
        """Draw `batch_size` images (default: one for each label, or one).

        `labels`: names or numbers, repeated to `batch_size`; None draws without a label.
        `generator`: a list has one for each image: `[torch.Generator().manual_seed(seed + i), …]`
        draws what `underpaint sample --seed SEED` does. `latents`: the standard normal noise to
        begin with, in the shape of the images (or of their wavelets or latents), [B, c, h, w].
        `output_type`: pil, np [B, H, W, C] or pt [B, C, H, W], both from 0 to 1. `sampling`: other
        fields of `Sampling` (sampler, grid, clip, eta, …); what is left out is the model's own.
        """
        device = self._execution_device
        given = sampling | {"steps": num_inference_steps, "guidance": guidance_scale}
        how = samplers.Sampling(
            **{**self.config["sampling"], **{k: v for k, v in given.items() if v is not None}}
        )
        how.check()
        ids = self._label_ids(labels)
        if batch_size is None:
            batch_size = len(ids or [-1]) if latents is None else len(latents)
        shape = (batch_size, *self.denoiser.shape)

        def noise() -> Tensor:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)

        levels = self.denoiser.levels(how.steps, how.grid)
        x = noise() if latents is None else self.denoiser.patches(latents.to(device).float())
        asked = null = None
        if self.denoiser.classes:
            drawn = [ids[i % len(ids)] for i in range(batch_size)] if ids else [-1] * batch_size
            asked = torch.tensor(drawn, device=device)
            null = torch.full_like(asked, -1) if ids else None  # towards no label: one call
        denoise = guided(self.denoiser, asked, null, how.guidance)
        with self.progress_bar(total=how.steps) as bar:
            x0 = samplers.sample(
                denoise,
                x * float(levels[0]),
                levels,
                how,
                noise=noise,
                callback=lambda i, x, x0: bar.update(),
            )
        pictures = self._shown(self._images(x0), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=pictures) if return_dict else (pictures,)

    def _label_ids(self, labels: Sequence[str | int] | str | int | None) -> list[int] | None:
        """Numbers of names or of numbers. Raises ValueError for what is unknown."""
        if labels is None:
            return None
        names = list(self.config["label_names"])
        numbers: dict[str | int, int] = {i: i for i in range(-1, len(names))}
        numbers |= {name: i for i, name in enumerate(names)}
        asked = [labels] if isinstance(labels, (str, int)) else list(labels)
        for label in asked:
            if not names or label not in numbers:
                known = ", ".join(names) or "none: it was trained without"
                raise ValueError(f"label {label!r} is unknown to this model; known: {known}")
        return [numbers[label] for label in asked]

    def _images(self, x0: Tensor) -> Tensor:
        """Patches → images [B, C, H, W], about in [-1, 1]."""
        planes = self.denoiser.planes(x0)
        if self.vae is None:
            return planes
        scale = getattr(self.vae.config, "scaling_factor", None) or 1.0
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return self.vae.decode((planes / scale + shift).to(self.vae.dtype)).sample.float()

    def _shown(self, images: Tensor, output_type: str) -> Any:
        """Images in [-1, 1] as they are asked for; of four channels with straight colours."""
        if output_type == "pil":
            levels = spaces.to_uint8(images).numpy()
            grey = levels.shape[-1] == 1
            return [Image.fromarray(x[..., 0] if grey else x) for x in levels]
        shown = (images / 2 + 0.5).clamp(0, 1)
        if shown.shape[1] == 4:
            alpha = shown[:, 3:]
            colours = torch.minimum(shown[:, :3], alpha) / alpha.clamp(min=1e-6)
            shown = torch.cat([colours, alpha], dim=1)
        return shown if output_type == "pt" else shown.cpu().permute(0, 2, 3, 1).numpy()
